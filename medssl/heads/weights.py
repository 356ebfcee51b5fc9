"""A fine-tuned network as files: encoder and card as after pretraining, ``head.safetensors`` beside them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from medssl.encoders.weights import CARD, load_card, load_encoder, save_encoder
from medssl.files import write_whole
from medssl.heads.base import Head, Network
from medssl.types import Card, UserError

if TYPE_CHECKING:
    from pathlib import Path

    from medssl.encoders.base import Encoder

HEAD = "head.safetensors"


def save_network(folder: Path, network: Network, card: Card) -> None:
    """Writes ``head.safetensors``, ``encoder.safetensors`` and ``card.json``; the first two say of which step they are.

    Raises:
        UserError: The disk refuses the files; former files are untouched.
    """
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in network.head.state_dict().items()}
    content = save(tensors, metadata={"format": "pt", "step": str(card.step)})
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / HEAD, lambda file: file.write(content))
    save_encoder(folder, network.encoder, card)


def load_network(folder: Path) -> tuple[Network, Card]:
    """Rebuilds the network that a card describes, in evaluation mode.

    Raises:
        UserError: No card, a card without a head (the run only pretrained), or files that do not belong together.
    """
    from safetensors import SafetensorError, safe_open

    card = load_card(folder)
    if card.tuned is None:
        message = f"{folder / CARD} has no head: {folder} is a run of pretraining; fine-tune it with medssl finetune"
        raise UserError(message)
    encoder, card = load_encoder(folder)
    head = _make_head(card, encoder, folder)
    try:
        with safe_open(folder / HEAD, "pt") as file:
            step = (file.metadata() or {}).get("step")
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        head.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        message = f"{folder / HEAD}: the head's weights could not be read ({reason}): run medssl finetune again"
        raise UserError(message) from error
    if step != str(card.step):
        message = (
            f"{folder}: head of step {step}, encoder of step {card.step}: the run was stopped while they were written; "
            "run the same medssl finetune command again"
        )
        raise UserError(message)
    return Network(encoder, head).eval(), card


def _make_head(card: Card, encoder: Encoder, folder: Path) -> Head:
    assert card.tuned is not None
    path, arguments = card.tuned.head.class_path, card.tuned.head.init_args
    module, _, name = path.rpartition(".")
    try:
        made = getattr(import_module(module), name)(encoder, card.tuned.schema, **arguments)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        message = f"{folder / CARD}: head {path} cannot be made ({error})"
        raise UserError(message) from error
    if not isinstance(made, Head):
        message = f"{folder / CARD}: {path} is no medssl.heads.base.Head"
        raise UserError(message)
    return made
