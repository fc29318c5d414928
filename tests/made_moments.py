"""Second moments on disk, as `multilora.activations` writes them."""

import hashlib
import json

from safetensors.numpy import save_file


def write_moments(directory, modules, base=None, **facts):
    """Write moments as multilora.activations does; modules: name → C, or the name it shares."""
    directory.mkdir(exist_ok=True)
    own = {name: C for name, C in modules.items() if not isinstance(C, str)}
    save_file(own, directory / "moments.safetensors")
    content = (directory / "moments.safetensors").read_bytes()
    tensors = {n: {"tensor": C if isinstance(C, str) else n} for n, C in modules.items()}
    record = {
        "command": "multilora.activations",
        "fingerprint": "abc",
        "base": {"path": "base", "sha256": base or {"model.safetensors": "00"}},
        "modules": tensors,
        "files": {"moments.safetensors": hashlib.sha256(content).hexdigest()},
    } | facts
    (directory / "record.json").write_text(json.dumps(record))
    return directory
