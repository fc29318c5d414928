"""Fields that a config of PEFT's LoRA may carry, and what they mean for the methods here.

`bias` trains biases of the base along with the adapter; "lora_only" is read as the method's own
name for it. `fan_in_fan_out` is accepted and has no effect: each layer says itself how its weight
is stored. `init_lora_weights` chooses the initial values; the initialisations of LoRA that move
part of W0 into the adapter, or look at data, are refused.
"""

from typing import Any

# Initialisations of LoRA by name, and why they are refused.
MOVING = "it moves part of W0 into one pair of factors, of which there are n here"
DATA = "it looks at data or gradients before training, through PEFT's own LoRA layers"
REFUSED = {
    "pissa": MOVING,
    "olora": MOVING,
    "mica": "it is made of W0's smallest directions, for one pair of factors",
    "orthogonal": "it is a start of one pair of factors; here ΔW starts at zero anyhow",
    "loftq": "it moves the error of quantisation into one pair of factors",
    "corda": DATA,
    "eva": DATA,
    "lora_ga": DATA,
}


def bias(value: Any, prefix: str) -> str:
    """Return the field `bias` in the method's own words; raise ValueError for an unknown value.

    prefix: that of the method's parameters, such as "multilora_".
    """
    own = f"{prefix}only"
    if value not in ("none", "all", "lora_only", own):
        raise ValueError(f"bias is {value!r}; expected 'none', 'all' or {own!r}")
    return own if value == "lora_only" else value


def check_start(value: Any, allowed: tuple[Any, ...], why: str) -> None:
    """Raise ValueError for a value of `init_lora_weights` that the method does not have.

    allowed: those that it has; why: what is said of True, False or "gaussian" if they are not.
    """
    if any(value is a or (isinstance(a, str) and value == a) for a in allowed):
        return
    expected = " or ".join(map(repr, allowed))
    name = value.lower() if isinstance(value, str) else ""
    reason = next((r for known, r in REFUSED.items() if name.startswith(known)), "")
    if not reason and (value is False or name == "gaussian"):
        reason = why
    raise ValueError(
        f"init_lora_weights is {value!r}{f': {reason}' if reason else ''}; expected {expected}"
    )
