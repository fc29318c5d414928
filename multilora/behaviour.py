"""Reduce a module's source to what can change a result, so that fingerprints ignore wording.

Removed: docstrings and comments, the annotations of functions and of their variables, imports of
this project's own modules, and the wording of errors, assertions, warnings, log messages and
`help`. Kept: everything else, including annotations in a class body, which declare fields, and
imports from other packages.
"""

import ast


def of(source: str) -> str:
    """Return the source of a module without the parts that cannot change a result.

    >>> of("def area(r: float) -> float:\\n    'Of a circle.'\\n    return 3.14 * r * r  # roughly")
    'def area(r):\\n    return 3.14 * r * r'
    """
    return ast.unparse(ast.fix_missing_locations(_Behaviour().visit(ast.parse(source))))


# Own packages: their modules are hashed under a role, so moving one of them changes no hash.
_OWN = ("analysis", "multilora")
# Objects on which a call only tells the user something.
_LOGGING = ("warnings", "logging", "logger")


class _Behaviour(ast.NodeTransformer):
    """Remove from a syntax tree what the module docstring lists."""

    in_function = False

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(body := getattr(node, "body", None), list) and not body:
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        outer, self.in_function = self.in_function, True
        self.generic_visit(node)
        self.in_function = outer
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        outer, self.in_function = self.in_function, False
        self.generic_visit(node)
        self.in_function = outer
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        if not self.in_function:
            return node
        if node.value is None:
            node.annotation = ast.Constant(None)
            return node
        return ast.Assign([node.target], node.value)

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        node.names = [name for name in node.names if name.name.partition(".")[0] not in _OWN]
        return node if node.names else None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        own = node.level or (node.module or "").partition(".")[0] in _OWN
        return None if own else node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc = _unworded(node.exc)
        return self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = node.func
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            if called.value.id in _LOGGING:
                node = _unworded(node)
        elif isinstance(called, ast.Name) and called.id == "warn":
            node = _unworded(node)
        node.keywords = [k for k in map(_unhelpful, node.keywords) if k is not None]
        return self.generic_visit(node)


def _unhelpful(keyword: ast.keyword) -> ast.keyword | None:
    """Remove help text from a keyword argument; None if nothing else is left of it."""
    if keyword.arg == "metadata" and isinstance(metadata := keyword.value, ast.Dict):
        entries = list(zip(metadata.keys, metadata.values, strict=True))
        kept = [
            (k, v) for k, v in entries if not (isinstance(k, ast.Constant) and k.value == "help")
        ]
        keyword.value = ast.Dict([k for k, _ in kept], [v for _, v in kept])
        return keyword if kept else None
    return None if keyword.arg == "help" else keyword


def _unworded(call: ast.Call) -> ast.Call:
    """The call with every argument that contains a string replaced by an empty string."""

    def silent(value: ast.expr) -> ast.expr:
        inside = (getattr(node, "value", None) for node in ast.walk(value))
        worded = any(isinstance(text, str) for text in inside)
        return ast.Constant("") if worded or isinstance(value, ast.JoinedStr) else value

    call.args = [silent(argument) for argument in call.args]
    call.keywords = [ast.keyword(k.arg, silent(k.value)) for k in call.keywords]
    return call
