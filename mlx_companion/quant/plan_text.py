"""A plan in words and numbers, for a terminal.

for name, text in facts(found).items(): print(name, text)
print(one_line(found))
"""

from __future__ import annotations

from mlx_companion.quant.plan import Plan

_EXPLAINED = {
    "cache": "key-value cache",
    "working": "reading a prompt",
    "optimizer": "optimizer states",
    "backward": "backward pass",
    "logits": "logits, in chunks",
}


def facts(own: Plan) -> dict[str, str]:
    """What a plan says, by name, in the order of reading."""
    shape, place = own.shape, own.machine
    active = shape.active_parameters
    each = f"{shape.parameters:,}"
    if active < 0.9 * shape.parameters:
        each += f", {active:,} of them per {shape.unit}"
    told = {
        "model": f"{shape.name} ({shape.family}, {shape.layers} layers)",
        "parameters": each,
        "weights as": f"{own.quantization.name}, {shape.bits_per_weight(own.quantization):.2f} "
        "bits per weight",
        "machine": f"{place.name}, {size(place.memory)}, {place.bandwidth / 1e9:.0f} GB/s",
    }
    told |= {_EXPLAINED.get(name, name): size(part) for name, part in own.parts.items()}
    told["in all"] = f"{size(own.total)} of {size(place.usable)} usable: " + _verdict(own)
    if own.loading > own.parts["weights"]:
        told["while loading"] = size(own.loading)
    return told | _speeds(own)


def one_line(own: Plan) -> str:
    """Such as "32,768 tokens: cache 4.3 GB, in all 9.2 GB (fits), 26 tokens/s"."""
    unit = f"{own.shape.unit}s"
    text = f"{own.context:>9,} {unit}: cache {size(own.parts.get('cache', 0))}, in all "
    text += f"{size(own.total)} ({_verdict(own)})"
    if own.speed is not None:
        text += (
            f", {own.speed.generation:.1f} {unit}/s, first after {own.speed.first_seconds:.0f} s"
        )
    return text


def size(count: int) -> str:
    """Bytes as 4.52 GB or 812 MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _verdict(own: Plan) -> str:
    return "fits" if own.fits else "does not fit"


def _speeds(own: Plan) -> dict[str, str]:
    unit = f"{own.shape.unit}s/s"
    if own.training is not None:
        found = own.training
        return {
            "trained": f"{found.trainable:,} numbers",
            "training": f"{found.speed:,.0f} {unit} (ceiling {found.ceiling:,.0f})",
        }
    if own.speed is None:
        return {}
    return {
        "generation": f"{own.speed.generation:,.1f} {unit} with {own.context:,} in the cache "
        f"(ceiling {own.speed.ceiling:,.1f})",
        "reading a text": f"{own.speed.prefill:,.0f} {unit}, the first reply after "
        f"{own.speed.first_seconds:,.1f} s at {own.context:,}",
    }
