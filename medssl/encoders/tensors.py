"""Read and write files of tensors. No code of a file is ever run."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from medssl.types import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

DAMAGE_ERRORS = (  # what damaged torch files raise
    ValueError, LookupError, TypeError, AttributeError, AssertionError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
SIGNATURES = {b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"\x89HDF": "an HDF5 file"}
SIGNATURES |= {b"\x1f\x8b": "a compressed file", b"\x93NUMPY": "a NumPy array", b"%PDF": "a PDF"}
SIGNATURES |= {b"\x80": "a pickle that torch did not save"}
MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # of torch's former form, a row of pickles
EXPECTED = "expected tensors by name, as safetensors or as a state dict that torch saved"
MAX_HEADER_BYTES = 100_000_000  # bytes; safetensors reads no longer one


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Content of a safetensors file: the same bytes for the same tensors and metadata.

    The safetensors library writes metadata in random order, so that equal networks would have different digests.
    """
    from safetensors.torch import save

    content = save({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, dict(metadata))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header = {"__metadata__": dict(sorted(metadata.items())), **{k: v for k, v in header.items() if k[:2] != "__"}}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def read_tensors(file: Path, *, allow_empty: bool = False) -> dict[str, Tensor]:
    """Reads all tensors of a file by key. The first bytes decide the format, not the name; no code is run.

    Args:
        file: A safetensors file, or a state dict that torch saved.
        allow_empty: Accept a file without tensors.

    Raises:
        UserError: The file cannot be read, is truncated, is not a file of weights, or holds objects that are not
            tensors; or it has no tensors and ``allow_empty`` is False.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    damaged_message = f"{file}: is cut off or damaged: copy or download it again"
    try:
        kind = _kind_of(file)
        # torch comments on the pickle protocol, the error says enough; by a name it would choose by the suffix
        with warnings.catch_warnings(action="ignore"), file.open("rb") as stream:
            content = load_file(file) if kind == "safetensors" else torch.load(stream, "cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        unsafe_message = (
            f"{file}: holds more than tensors and is not opened: save its state dict alone, best as safetensors"
        )
        raise UserError(damaged_message if "truncated" in str(error) else unsafe_message) from error
    except OSError as error:
        message = f"{file}: weights could not be read ({error.strerror}): {EXPECTED}"
        raise UserError(message if error.strerror else damaged_message) from error
    except (
        SafetensorError,
        EOFError,
        RuntimeError,
        *DAMAGE_ERRORS,
    ) as error:  # torch advises to trust the file: not told
        raise UserError(damaged_message) from error
    tensors = _tensors_in(content)
    if not tensors and not allow_empty:
        message = f"{file}: holds no state dict: {EXPECTED}"
        raise UserError(message)
    return tensors


def _kind_of(file: Path) -> str:
    """Format of a file of weights by its first bytes: "safetensors" or "torch".

    Raises:
        UserError: The file has another format, or is truncated.
        OSError: The file cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(64)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= MAX_HEADER_BYTES:
        if 8 + length <= size:
            return "safetensors"
    elif head.startswith(b"PK"):
        if zipfile.is_zipfile(file):
            return _kind_of_archive(file)
    elif MAGIC in head:
        return "torch"
    else:
        content = next((content for start, content in SIGNATURES.items() if head.startswith(start)), "")
        content = content or ("text" if head and all(9 <= byte < 128 for byte in head) else "nothing known")
        message = f"{file}: is {content if size else 'empty'}, no file of weights: {EXPECTED}"
        raise UserError(message)
    message = f"{file}: is cut off or damaged: copy or download it again"
    raise UserError(message)


def _kind_of_archive(file: Path) -> str:
    """Checks that an archive is one that torch saved, and returns "torch".

    Raises:
        UserError: It is a TorchScript program, or an archive of something else.
    """
    with zipfile.ZipFile(file) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > file.stat().st_size:  # torch stores tensors as they are
        message = f"{file}: would be unpacked to {unpacked / 1e6:,.0f} MB, torch does not compress: {EXPECTED}"
        raise UserError(message)
    if "constants.pkl" in names:
        message = (
            f"{file}: is a TorchScript archive, a program that is not run: save the state dict of its module alone, "
            "best as safetensors"
        )
        raise UserError(message)
    if "data.pkl" not in names:
        message = f"{file}: is an archive that torch did not save, no file of weights: {EXPECTED}"
        raise UserError(message)
    return "torch"


def _tensors_in(content: object) -> dict[str, Tensor]:
    """The state dict of a checkpoint: of all nested containers, the one with the most tensors.

    Containers with equal keys (a student and its teacher) are returned together, with the container's name as prefix.
    """
    dicts_by_name: dict[str, dict[str, Tensor]] = {}
    queue: list[tuple[str, object]] = [("", content)]
    visited = set[int]()  # a container may hold itself
    while queue:
        name, container = queue.pop(0)
        if isinstance(container, Mapping) and id(container) not in visited:
            visited.add(id(container))
            tensors = {str(key): value for key, value in container.items() if isinstance(value, torch.Tensor)}
            if tensors:
                dicts_by_name[name] = tensors
            queue += [(f"{name}{key}.", value) for key, value in container.items()]
    largest = max(dicts_by_name.values(), key=len, default={})
    equal_keys = {name: tensors for name, tensors in dicts_by_name.items() if tensors.keys() == largest.keys()}
    if len(equal_keys) < 2:
        return largest
    return {name + key: value for name, tensors in equal_keys.items() for key, value in tensors.items()}


def refuse_strange(file: Path, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Refuses tensors that cannot be weights of a network.

    Args:
        file: The file, for messages.
        pairs: Tensor of the file and tensor of the network, by key.

    Raises:
        UserError: A tensor is not dense, has another kind of number type, or holds NaN or infinity where the network's
            tensor does not; names the first.
    """
    problems = {
        key: problem
        for key, (value, network_value) in pairs.items()
        if (problem := _problem_with(value, network_value))
    }
    if problems:
        key, problem = next(iter(problems.items()))
        message = (
            f"{file}: {len(problems)} of {len(pairs)} tensors are no weights, the first is {key} ({problem}): expected "
            "dense, finite floating-point numbers; save them so, or choose another file"
        )
        raise UserError(message)


def _problem_with(value: Tensor, network_value: Tensor) -> str:
    """Why a tensor of a file cannot be a weight of the network; "" if it can."""
    if value.is_quantized:
        return "quantized"
    if value.layout != torch.strided:
        return "sparse"
    if value.is_meta:
        return "without numbers"
    if value.is_complex() or (network_value.is_floating_point() and not value.is_floating_point()):
        return str(value.dtype).removeprefix("torch.")
    not_finite = int((~value.to(network_value.dtype).isfinite()).sum()) if bool(network_value.isfinite().all()) else 0
    return f"{not_finite} of {value.numel()} numbers are NaN or infinite" if not_finite else ""
