"""Studies that are kept next to a run."""

from multilora.reproduction import experiments, trained


def test_what_takes_long_is_measured_once(tmp_path):
    facts = {"fingerprint": "a", "weights": {"w": "1"}}
    calls = []

    def make():
        calls.append(1)
        return [{"k": 1, "score": 0.5}]

    def kept(**changes):
        run = trained.Trained(tmp_path, facts | changes)
        return experiments._kept(run, "cuts", make, experiments.cuts)

    assert kept() == kept() == [{"k": 1, "score": 0.5}]
    assert len(calls) == 1
    kept(weights={"w": "2"})  # another run's weights in the same place
    assert len(calls) == 2
