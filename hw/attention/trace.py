# SPDX-License-Identifier: MIT
"""From a sentence and its golden results to what the cycle model needs of them."""

from collections.abc import Sequence

from hw.confidence.config import LSB_BITS
from hw.fetch.layout import Plane

from .cycles import LayerTrace
from .golden import LayerResult
from .layers import LayerInput
from .program import PlaneBits


def traces(
    layers: Sequence[LayerInput], results: Sequence[LayerResult], bits: PlaneBits, *, first_atom: int = 0
) -> list[LayerTrace]:
    """One trace a layer of a sentence, its planes where :func:`hw.attention.program.program` puts them."""
    found: list[LayerTrace] = []
    n_atoms = first_atom
    for layer, result in zip(layers, results, strict=True):
        planes = _planes(layer, bits, n_atoms)
        n_atoms += sum(plane.n_atoms for plane in planes.values())
        n_tokens, head_dim = layer.heads[0].q.shape
        found.append(
            LayerTrace(
                is_first=not found,
                n_sentence_tokens=n_tokens,
                n_model_heads=len(layer.heads),
                tokens=result.tokens.numpy(),
                planes=[
                    {name: plane.request(head, 1) for name, plane in planes.items()}
                    for head in result.heads.tolist()
                ],
                head_dim=head_dim,
                progressive=layer.progressive,
                used_lsb=result.used_lsb.numpy(),
                n_values=layer.n_values,
                probabilities=result.probabilities.numpy(),
                token_importance=result.token_importance.numpy(),
                head_importance=result.head_importance.numpy(),
                n_tokens_next=layer.n_tokens_next,
                n_heads_next=layer.n_heads_next,
            )
        )
    return found


def _planes(layer: LayerInput, bits: PlaneBits, first_atom: int) -> dict[str, Plane]:
    """The layer's planes one behind the other."""
    n_tokens, head_dim = layer.heads[0].q.shape
    widths = {"q": bits.q, "v": bits.v, "k": bits.k}
    if layer.progressive:
        widths["lsb"] = LSB_BITS
    planes: dict[str, Plane] = {}
    for name, width in widths.items():
        planes[name] = Plane(
            base_atom=first_atom,
            n_heads=len(layer.heads),
            n_tokens=n_tokens,
            head_dim=head_dim,
            bits=width,
            is_unsigned=name == "lsb",
        )
        first_atom += planes[name].n_atoms
    return planes
