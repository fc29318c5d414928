"""Rules for the committed notebooks; `make test` also runs them (nbmake)."""

import ast
import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAY_IMPORT = {
    *("IPython", "analysis", "json", "matplotlib", "ml_dtypes", "multilora", "numpy", "pandas"),
    *("pathlib", "safetensors", "seaborn", "tempfile"),
}
LONGEST = 100  # characters of a line of code
ABSOLUTE = re.compile(r"(?<![\w.<])/(?:home|root|tmp|usr|opt|work|private|var|Users)/|[A-Z]:\\")
IMAGE = re.compile(r"image/")


NOT_STORED = "not-stored"  # a cell whose output is too large to keep; `make notebooks` removes it


def complaints(notebook):
    """Return the flaws of a notebook, one sentence each."""
    flaws = [*of_text(notebook)]
    code = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and NOT_STORED not in cell.metadata.get("tags", [])
    ]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        flaws.append("cells were not run once each, in order, from a clean kernel")
    outputs = [output for cell in code for output in cell.outputs]
    if not any(IMAGE.match(kind) for output in outputs for kind in output.get("data", {})):
        flaws.append("no picture is among the outputs")
    for output in outputs:
        if output.output_type == "error":
            flaws.append(f"an output is an error: {output.ename}")
        if output.output_type == "stream" and output.name == "stderr":
            flaws.append(f"a warning is among the outputs: {output.text[:80]}")
        texts = [text for kind, text in output.get("data", {}).items() if not IMAGE.match(kind)]
        if any(ABSOLUTE.search(str(text)) for text in [*texts, output.get("text", "")]):
            flaws.append("an output holds a path of one machine")
        if any(re.search(r" at 0x[0-9a-f]{6,}", str(text)) for text in texts):
            flaws.append("an output holds an address in memory, other at every run")
    if any("execution" in cell.metadata for cell in code):
        flaws.append("cells hold the times at which they were run")
    for cell in code:
        flaws += of_code(cell.source)
        hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        if hidden != ("%matplotlib" in cell.source):
            flaws.append("the imports, and nothing else, should stand in a collapsed cell")
    return flaws


def of_text(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    if len(re.findall(r"^# ", text, re.MULTILINE)) != 1:
        yield "expected one heading of the first order"
    if not re.search(r"^## .*does not", text, re.MULTILINE):
        yield "no section says what it does not say"


def of_code(source):
    lines = [line for line in source.splitlines() if not line.startswith("%")]
    tree = ast.parse("\n".join(lines))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield f"line {node.lineno} defines something: definitions belong in the packages"
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in names:
            if name.split(".")[0] not in MAY_IMPORT:
                yield f"imports {name}; expected {', '.join(sorted(MAY_IMPORT))}"
    if max(map(len, source.splitlines()), default=0) > LONGEST:
        yield "a line of code runs off"
    if ABSOLUTE.search(source):
        yield "the code holds a path of one machine"


@pytest.fixture(scope="module")
def first():
    return nbformat.read(NOTEBOOKS[0], as_version=4)


def test_there_are_seven():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{i:02}" for i in range(1, 8)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert complaints(notebook) == []


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def give_path(notebook):
    text = {"text/plain": "wrote /home/somebody/adapter"}
    code_of(notebook)[0].outputs.append(nbformat.v4.new_output("display_data", text))


def give_address(notebook):
    text = {"text/plain": "<pandas.io.formats.style.Styler at 0x7f10ac3d5e10>"}
    code_of(notebook)[0].outputs.append(nbformat.v4.new_output("display_data", text))


def give_stream(notebook):
    stream = nbformat.v4.new_output("stream", name="stderr", text="FutureWarning: soon")
    code_of(notebook)[0].outputs.append(stream)


def give_error(notebook):
    error = nbformat.v4.new_output("error", ename="KeyError", evalue="'x'", traceback=[])
    code_of(notebook)[0].outputs.append(error)


def take_outputs(notebook):
    for cell in code_of(notebook):
        cell.outputs = []


def give_code(text):
    def broken(notebook):
        code_of(notebook)[0].source += f"\n{text}"

    return broken


def give_heading(notebook):
    notebook.cells.append(nbformat.v4.new_markdown_cell("# Another title"))


def take_limits(notebook):
    notebook.cells = [cell for cell in notebook.cells if "does not" not in cell.source]


def run_again(notebook):
    code_of(notebook)[1].execution_count = 99


def show_imports(notebook):
    code_of(notebook)[0].metadata["jupyter"]["source_hidden"] = False


def give_time(notebook):
    code_of(notebook)[0].metadata["execution"] = {"iopub.execute_input": "2024-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (give_path, "path of one machine"),
        (give_address, "address in memory"),
        (give_stream, "warning"),
        (give_error, "error: KeyError"),
        (take_outputs, "no picture"),
        (give_code("import torch"), "imports torch"),
        (give_code("from benchmarks import memory"), "imports benchmarks"),
        (give_code(f"x = '{'x' * 100}'"), "runs off"),
        (show_imports, "collapsed"),
        (give_code("def f():\n    pass"), "defines something"),
        (give_code("f = lambda x: x"), "defines something"),
        (give_code("x = open('/tmp/x/table.csv')"), "path of one machine"),
        (give_heading, "one heading"),
        (take_limits, "what it does not say"),
        (run_again, "clean kernel"),
        (give_time, "times"),
    ],
)
def test_a_broken_notebook_would_be_seen(first, broken, words):
    notebook = copy.deepcopy(first)
    broken(notebook)
    flaws = complaints(notebook)
    assert len(flaws) == 1
    assert words in flaws[0]


def test_what_they_import_for_analyses_does_not_import_torch():
    """Those about a reproduction import multilora, which registers its methods with PEFT."""
    imported = {
        line
        for path in NOTEBOOKS
        for cell in code_of(nbformat.read(path, as_version=4))
        for line in cell.source.splitlines()
        if re.match(r"(from|import) ", line) and "multilora" not in line
    }
    assert any("analysis" in line for line in imported)
    for path in (NOTEBOOKS[0], NOTEBOOKS[6]):  # of a user's own adapters
        assert "multilora" not in "".join(cell.source for cell in code_of(nbformat.read(path, 4)))
    script = "\n".join([*sorted(imported), "import sys", "print('torch' in sys.modules)"])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


OWN = """
import json, sys
import matplotlib
matplotlib.use("Agg")
for paths in json.loads(sys.argv[2]):
    source = open(sys.argv[1], encoding="utf-8").read().replace("PATHS = []", f"PATHS = {paths!r}")
    print("===")
    exec(compile(source, "notebook", "exec"), {"__name__": "notebook"})
"""


def test_the_notebook_of_ones_own_adapters_says_what_it_cannot_read(
    tmp_path, write_adapter, lora_tensors
):
    source = "\n".join(cell.source for cell in code_of(nbformat.read(NOTEBOOKS[6], as_version=4)))
    script = tmp_path / "notebook.py"
    script.write_text("\n".join(x for x in source.splitlines() if x[:1] != "%"), "utf-8")
    prompt = write_adapter({"prompt": np.ones((2, 3), "f4")}, "p", peft_type="PROMPT_TUNING")
    zero = {name: x * ("lora_A" in name) for name, x in lora_tensors("layers.0.q").items()}
    untrained, also = (write_adapter(zero, name) for name in ("untrained", "also"))
    good = write_adapter(lora_tensors("layers.0.q"), "good")
    cases = [
        [prompt],
        [tmp_path / "nowhere"],
        [untrained],
        [untrained, also],
        [good, prompt],
        [good],
    ]
    listed = json.dumps([[str(path) for path in paths] for paths in cases])
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", OWN, script, listed],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = done.stdout.split("===\n")[1:]
    assert "PROMPT_TUNING', which puts learned tokens before the input" in out[0]
    assert "nowhere: no such file or directory" in out[1]
    assert "not analysed: " not in out[2] + out[3] + out[5]
    assert "there is no ΔW" in out[4]
