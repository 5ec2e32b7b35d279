"""`raq init`: a first experiment, with the keys that most people change, each with what it means."""

import re
from pathlib import Path

from raq.errors import UserError
from raq.experiment.schema import NAME_PATTERN

TEMPLATE = """\
# What raq is asked. All keys: raq schema, or experiments/README.md. See what it would do: raq plan {file}
name: {name}

data:
  name: digits              # digits, cifar10, imagefolder (with root), hf:NAME, or your own: my_package.data:load, a
                            # function in this folder that returns raq.Data(test=, train=, calibration=, classes=), data
                            # sets of (inputs, target): raq.Arrays(inputs, targets) makes one of arrays
  # root: /data/images      # the folder of cifar10 or imagefolder
model:
  name: resnet20-cifar      # resnet18-cifar, resnet20-cifar, torchvision:mobilenet_v2, or my_package.nets:build
                            # (called with num_classes=<int> if it takes that)
  # weights: weights.pt     # a state dict, instead of training; included: the function returns a trained network

train: {{epochs: 12}}         # FP32
ptq: {{}}                     # quantization after training; null leaves the candidate out
qat: {{epochs: 1}}            # quantization-aware training, from where PTQ ended; null leaves it out

bench:
  batch_sizes: [1, 32]      # images a call
  budget_s: 60              # seconds of measuring; more make narrower intervals

require:
  max_drop: 3               # points of top-1 that a shipped candidate may lose at most: the upper end of the interval
select:
  margin: {{accuracy: 3, speed: 0.02}}  # within these (points, share of the time) two candidates are equivalent
"""


def write_starter(name: str, folder: Path) -> Path:
    """Write NAME.yaml into the folder. UserError if the name is not one, or the file is there."""
    if not re.match(NAME_PATTERN, name):
        raise UserError(
            f"{name!r} is no name of an experiment", "use letters, digits, '.', '_' and '-', at most 100, no folder"
        )
    path = folder / f"{name}.yaml"
    try:
        with path.open("x") as file:
            file.write(TEMPLATE.format(name=name, file=path.name))
    except FileExistsError:
        raise UserError(f"{path} is there already", "give another name, or remove it") from None
    return path
