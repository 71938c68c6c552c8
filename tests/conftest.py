"""What all tests share: few and patient threads, the small real data where the machine has it, and a tiny corpus."""

from __future__ import annotations

import os
import signal
import tempfile

# Before torch is imported anywhere: idle threads that spin would take the processor from the other processes of a test.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the others have the other cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# What tests make is marked under a key of their own.
os.environ.setdefault("TESSERA_KEYS", os.path.join(tempfile.gettempdir(), f"tessera-test-keys-{os.getuid()}"))

from collections.abc import Callable
from pathlib import Path

import pytest

_CHECKOUT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Ctrl-C is not ignored, as it is by what a script starts in the background: tests send it to what they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """A function from a path in the shared data (`text/lm/udhr2`) to that file or folder; it skips the test where that is absent.

    The data is looked for in $TESSERA_DATA and, if that is not set, in `../shared/data` beside the checkout.
    """
    folder = Path(os.environ.get("TESSERA_DATA") or _CHECKOUT.parent / "shared" / "data")

    def find(path: str) -> Path:
        if not (folder / path).exists():
            pytest.skip(f"needs the shared data {path}, which is not in {folder} (set TESSERA_DATA to the folder that holds it)")
        return folder / path

    return find


@pytest.fixture
def tiny_corpus_folder(tmp_path: Path) -> Path:
    """A folder of twelve short and different text files and two Python files, about 12 kB in all."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index in range(12):
        lines = [
            f"Note {index}, line {line}: {line * index} boats left harbour {chr(97 + index)} before dawn.\n" for line in range(16)
        ]
        (folder / f"note-{index:02d}.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "add.py").write_text('def add(a, b):\n    """The sum of a and b."""\n    return a + b\n', encoding="utf-8")
    (folder / "greet.py").write_text("def greet(name):\n    return f'Grüße, {name}!'\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small published tokenizers with random weights, in their real layout, by family; those of sound take 4,000
    samples in a second."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (the extra [published])")
    import torch

    made = {
        "mimi": transformers.MimiConfig(
            sampling_rate=4000, hidden_size=16, num_filters=4, upsampling_ratios=[4, 5, 4], codebook_size=16, codebook_dim=8,
            vector_quantization_hidden_dimension=8, num_quantizers=4, num_hidden_layers=1, intermediate_size=16,
            num_attention_heads=2, num_key_value_heads=2, upsample_groups=16, sliding_window=4, frame_rate=25.0,
        ),
        "encodec": transformers.EncodecConfig(
            sampling_rate=4000, hidden_size=8, num_filters=4, upsampling_ratios=[5, 4, 4], codebook_size=16,
            target_bandwidths=[0.4, 0.6], num_lstm_layers=1,
        ),
        "dac": transformers.DacConfig(
            sampling_rate=4000, encoder_hidden_size=4, downsampling_ratios=[2, 5, 8], decoder_hidden_size=32, n_codebooks=3,
            codebook_size=16, codebook_dim=4,
        ),
        "emu3": transformers.Emu3VQVAEConfig(
            codebook_size=32, base_channels=32, channel_multiplier=[1, 1, 1], num_res_blocks=1, attn_resolutions=[2],
            hidden_size=32,
        ),
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("codecs")
    for seed, (family, config) in enumerate(made.items()):
        torch.manual_seed(seed)
        name = type(config).__name__.removesuffix("Config")
        network = getattr(transformers, name if family == "emu3" else f"{name}Model")(config).eval()
        with torch.no_grad():
            for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
                # Codebooks begin as zeros, in which all codes are one.
                if "codebook" in name and tensor.is_floating_point() and tensor.ndim == 2:
                    tensor.normal_()
            if family == "emu3":
                clips = network.encoder(torch.randn(4, 4, 3, 16, 16)).permute(0, 2, 1, 3, 4)
                latents = network.quant_conv(clips).movedim(1, -1).flatten(0, -2)
                network.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:32]])
            if family == "encodec":
                # Its first book is of what there is to tell apart, which all lies near one place.
                network.quantizer.layers[0].codebook.embed.copy_(network.encoder(torch.randn(1, 1, 16 * 80))[0].T)
        network.save_pretrained(folder / family)
        (folder / family / "README.md").write_text("---\nlicense: cc-by-4.0\ntags:\n- audio\n---\n# A codec\n")
    return {family: folder / family for family in made}
