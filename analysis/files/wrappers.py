"""Names of tensors without the components that compiling or distributing a model puts in.

_orig_mod.<name>, <module>._fsdp_wrapped_module.<name>     anywhere in a name
module.<name>                                              if all names begin with it
"""

from dataclasses import replace

from analysis.files.tensors import Stored

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
DISTRIBUTED = "module."


def unwrapped(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """Return the tensors of a file by their names without wrappers.

    The names stay as they are if two of them would become the same.
    """
    short = {name: _unwrapped(name) for name in tensors}
    while short and all(name.startswith(DISTRIBUTED) for name in short.values()):
        short = {name: cut.removeprefix(DISTRIBUTED) for name, cut in short.items()}
    if len(set(short.values())) < len(short) or all(name == cut for name, cut in short.items()):
        return tensors
    return {
        short[name]: replace(stored, tied=short.get(stored.tied, "")) if stored.tied else stored
        for name, stored in tensors.items()
    }


def _unwrapped(name: str) -> str:
    """Return a name without the components of WRAPPERS.

    >>> _unwrapped("_orig_mod.layers.0._checkpoint_wrapped_module.q.lora_A")
    'layers.0.q.lora_A'
    """
    if not any(wrapper in name for wrapper in WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
