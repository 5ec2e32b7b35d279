"""What a stage found, in one line."""

from raq.report.lines import training


def test_a_training_says_what_was_rescaled_before_it() -> None:
    row = {"loss": 0.25, "images_per_s": 1234.0}
    assert training({"history": [row, row]}) == "2 epochs, loss 0.250, 1234 images/s"
    assert training({"history": [{**row, "rescaled_layers": []}]}) == "1 epochs, loss 0.250, 1234 images/s"
    one, two = ({**row, "rescaled_layers": names} for names in (["head"], ["conv", "head"]))
    assert training({"history": [one, row]}).endswith("images/s; rescaled before it: head")
    assert training({"history": [two, row]}).endswith("images/s; rescaled before it: head and 1 more")
