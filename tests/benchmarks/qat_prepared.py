"""torchvision's classifiers prepared for QAT: is the graph, its fake quantizers off, still the network?

    uv run python tests/benchmarks/qat_prepared.py [--only resnet18,...]

SQNR of the outputs against the FP32 network in evaluation mode, as raq prepares and as torchao alone does; each model
in a process of its own. Weights are random, batch normalisation has seen a few random images. The table goes to
results/reference/zoo/qat-prepared.json.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

from zoo import CLASSES, MODELS, REFERENCE, SIDE, settle

from raq.environment import environment
from raq.errors import RaqError
from raq.store.files import now, write_json

MORE = ("mobilenet_v3_small", "inception_v3", "efficientnet_v2_s", "efficientnet_b5", "maxvit_t")  # eps of their own
SIDES = {"inception_v3": 299}
FILE = REFERENCE / "qat-prepared.json"


def one(name: str) -> dict[str, Any]:
    """The distance of one model's prepared graph from it, in dB; None stands for equal, "failed" says what failed."""
    import torch

    from raq.model.zoo import build_model
    from raq.quantize import qat

    torch.manual_seed(0)
    side = SIDES.get(name, SIDE)
    network = build_model(f"torchvision:{name}", CLASSES, None)
    settle(network, side)
    example = torch.zeros(2, 3, side, side)
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(2))
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    found: dict[str, Any] = {"model": name, "batch_norms": len(norms), "eps": sorted({m.eps for m in norms})}
    try:
        prepared = qat.prepare_qat(network, example, "x86", reduce_range=False)
        found["prepared_db"] = qat.prepared_distance_db(network, prepared, images)
        replaced = {name: getattr(qat, name) for name in ("restore_batch_norms", "refuse_other_function")}
        for step in replaced:  # as torchao alone
            setattr(qat, step, lambda *arguments: None)
        alone = qat.prepare_qat(network, example, "x86", reduce_range=False)
        for step, function in replaced.items():
            setattr(qat, step, function)
        found["torchao_alone_db"] = qat.prepared_distance_db(network, alone, images)
        with torch.no_grad():
            qat.set_graph_mode(alone, training=False, norms=False)
            with qat.without_fake_quantizers(alone):
                found["torchao_alone_changed"] = int((alone(images).argmax(1) != network(images).argmax(1)).sum())
    except RaqError as error:
        found["failed"] = error.message
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only")
    parser.add_argument("--one")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one)))
        return
    rows = []
    for name in options.only.split(",") if options.only else (*MODELS, *MORE):
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=False)
        lines = done.stdout.strip().splitlines()
        ended = {"model": name, "failed": done.stderr.strip()[-300:]}
        rows.append(json.loads(lines[-1]) if done.returncode == 0 and lines else ended)
        print(rows[-1], flush=True)
    if not options.only:
        write_json(FILE, {"measured_at": now(), "environment": environment(), "models": rows})


if __name__ == "__main__":
    main()
