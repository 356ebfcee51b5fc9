"""Save and load fine-tuned networks: the files of pretraining, and ``head.safetensors``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medssl.encoders.tensors import tensor_bytes
from medssl.encoders.weights import CARD, load_encoder, read_card, save_encoder
from medssl.heads.base import Head, Network
from medssl.io.atomic_write import atomic_write
from medssl.io.trust import network_class
from medssl.types import Card, UserError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from medssl.encoders.base import Encoder

HEAD = "head.safetensors"


def save_network(folder: Path, network: Network, card: Card) -> None:
    """Writes ``head.safetensors``, ``encoder.safetensors`` and ``card.json`` atomically.

    Head and card hold the number of the step, so that files of different steps are recognized.

    Raises:
        UserError: The files cannot be written; former files are unchanged.
    """
    content = tensor_bytes(network.head.state_dict(), {"format": "pt", "step": str(card.step)})
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / HEAD, lambda file: file.write(content))
    save_encoder(folder, network.encoder, card)


def load_network(folder: Path, trust: Collection[str] = ()) -> tuple[Network, Card]:
    """Builds the network that a card describes and loads its weights; the network is in evaluation mode.

    Args:
        folder: Folder of a fine-tuning run.
        trust: As for ``medssl.encoders.weights.load_card``.

    Returns:
        The network, and its card.

    Raises:
        UserError: There is no card, the card has no head (a run of pretraining) or names classes that are not trusted,
            or the files come from different steps.
    """
    from safetensors import SafetensorError, safe_open

    card = read_card(folder)
    if card.tuned is None:
        message = f"{folder / CARD} has no head: {folder} is a run of pretraining; fine-tune it first"
        raise UserError(message)
    encoder, card = load_encoder(folder, trust)
    head = _make_head(card, encoder, folder, trust)
    try:
        with safe_open(folder / HEAD, "pt") as file:
            step = (file.metadata() or {}).get("step")
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        head.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        message = f"{folder / HEAD}: the head's weights could not be read ({reason}): run the fine-tuning again"
        raise UserError(message) from error
    if step != str(card.step):
        message = (
            f"{folder}: head of step {step}, encoder of step {card.step}: the run was stopped while they were written; "
            "run the same fine-tuning again"
        )
        raise UserError(message)
    return Network(encoder, head).eval(), card


def _make_head(card: Card, encoder: Encoder, folder: Path, trust: Collection[str]) -> Head:
    assert card.tuned is not None
    path, arguments = card.tuned.head.class_path, card.tuned.head.init_args
    kind = network_class(card.tuned.head, f"{folder / CARD}: tuned.head", trust)
    if not issubclass(kind, Head):
        message = f"{folder / CARD}: {path} is no medssl.heads.base.Head"
        raise UserError(message)
    try:
        return kind(encoder, card.tuned.schema, **arguments)
    except (ValueError, TypeError) as error:
        message = f"{folder / CARD}: head {path} cannot be made ({error})"
        raise UserError(message) from error
