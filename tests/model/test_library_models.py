"""Networks of libraries by name: torchvision's for segmentation, and what transformers has saved."""

import json
import shutil
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


@pytest.mark.slow
def test_a_model_of_transformers_comes_with_its_weights(saved: Path, tmp_path: Path) -> None:
    import transformers

    expected = transformers.BertForSequenceClassification.from_pretrained(saved).eval()
    ids, mask = torch.randint(0, 60, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    network = build_network(f"transformers:{saved}", 3, TOKENS, "logits").eval()
    with torch.no_grad():
        assert torch.equal(network(ids, mask), expected(input_ids=ids, attention_mask=mask).logits)
    expected.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    half = build_model(f"transformers:{tmp_path / 'half'}", None)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}, "the baseline computes in float32"
    assert [file.name for file in transformers_files(str(saved))] == ["config.json", "model.safetensors"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_damaged_files_of_a_model_are_one_line(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="transformers cannot make"):
        build_model(f"transformers:{tmp_path}", None)
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(UserError, match="transformers cannot make"):
        build_model(f"transformers:{tmp_path}", None)


@pytest.mark.slow
def test_weights_that_lack_a_part_are_refused_and_code_is_not_run(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    config = json.loads((saved / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(UserError, match=r"(the weights of .* lack .*intermediate|transformers cannot make)"):
        build_model(f"transformers:{folder}", None)
    own = {
        "model_type": "own",
        "architectures": ["Mine"],
        "auto_map": {"AutoConfig": "evil.Mine", "AutoModel": "evil.Mine"},
    }
    (folder / "config.json").write_text(json.dumps(own))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(UserError, match="transformers cannot make"):
        build_model(f"transformers:{folder}", None)
    assert not (tmp_path / "ran").exists()
