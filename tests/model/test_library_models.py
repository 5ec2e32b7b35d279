"""Networks of libraries by name: torchvision's for segmentation, and what transformers has saved."""

from pathlib import Path

import pytest
import torch

from raq.errors import UserError
from raq.experiment.inputs import InputSpec
from raq.experiment.load import load_experiment
from raq.model.library_models import transformers_files
from raq.model.zoo import build_model, build_network


def test_torchvisions_networks_for_segmentation() -> None:
    inputs = (InputSpec("input", (3, 32, 32), "float32", -1, 1),)
    network = build_network("torchvision:lraspp_mobilenet_v3_large", 3, inputs, "out")
    with torch.no_grad():
        assert network.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    with pytest.raises(UserError, match="torchvision has no network 'lraspp_mobilenet_v9'"):
        build_model("torchvision:lraspp_mobilenet_v9", 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT for classification with its weights, as save_pretrained writes it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert") / "saved"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=60, num_labels=3, max_position_embeddings=40, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


TOKENS = tuple(InputSpec(name, (7,), "int64", 0, 1, (), True) for name in ("input_ids", "attention_mask"))


def test_a_model_of_transformers_comes_with_its_weights(saved: Path) -> None:
    import transformers

    expected = transformers.BertForSequenceClassification.from_pretrained(saved).eval()
    ids, mask = torch.randint(0, 60, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    network = build_network(f"transformers:{saved}", 3, TOKENS, "logits").eval()
    with torch.no_grad():
        assert torch.equal(network(ids, mask), expected(input_ids=ids, attention_mask=mask).logits)
    others = build_network(f"transformers:{saved}", 5, TOKENS, "logits").eval()
    with torch.no_grad():
        assert others(ids, mask).shape == (2, 5), "a last layer of another size, untrained"
    assert [file.name for file in transformers_files(str(saved))] == ["config.json", "model.safetensors"]


def test_a_folder_is_relative_to_the_experiment(saved: Path) -> None:
    file = saved.parent / "own.yaml"
    file.write_text("name: own\nmodel: {name: 'transformers:saved', weights: included}\n")
    assert load_experiment(file).model.name == f"transformers:{saved}"


@pytest.mark.parametrize(
    ("name", "said"),
    [("nobody/nothing", "neither a folder with config.json nor in the Hugging Face cache"), ("..", "neither")],
)
def test_what_transformers_has_not(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=said):
        build_model(f"transformers:{name}", None)


def test_damaged_files_of_a_model_are_one_line(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="transformers cannot make"):
        build_model(f"transformers:{tmp_path}", None)
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(UserError, match="transformers cannot make"):
        build_model(f"transformers:{tmp_path}", None)
