"""What can be known of a network before anything is trained: that it takes the data, and can be exported.

torch is imported inside the function, in the process that plans; never ray.
"""

from collections.abc import Mapping
from pathlib import Path

from raq.environment import environment_kept
from raq.experiment.fields import INCLUDED
from raq.experiment.inputs import read_inputs
from raq.experiment.schema import MODELS
from raq.plan.prepare import Prepared


def refuse_model_ahead(prepared: Prepared, stale: Mapping[str, str]) -> None:
    """UserError for a network that no stage could work with, or whose weights do not fit.

    raq's own networks are known, and one that is trained was seen.
    """
    experiment, data = prepared.experiment, prepared.data
    given = None if experiment.model.weights in (None, INCLUDED) else Path(str(experiment.model.weights))
    if "train" not in stale or (experiment.model.name in MODELS and given is None):
        return
    from raq.artifact.inspection import refuse_what_cannot_run

    inputs = read_inputs(data.inputs)
    assert inputs is not None, "they were read from data a moment ago"
    classes = data.classes
    with environment_kept():
        refuse_what_cannot_run(
            experiment.model.name, inputs, classes, experiment.model.output, str(Path.cwd()),
            is_classifier=experiment.metric.is_top1, weights=given,
        )  # fmt: skip
