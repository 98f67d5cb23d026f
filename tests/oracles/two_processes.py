"""What each of two processes does in the test of many processes; torchrun starts it, with a folder of option files.

The joint stage is trained; then a tiny stage whose loss breaks in one process, and one that one process is told to stop.
What the two then raise is written to ``outcome_RANK.json`` in the folder.
"""

import json
import os
import signal
import sys
from pathlib import Path

from oracles.tiny_stage import TinyModel
from sgpn_model.train import distributed
from sgpn_model.train import loop as train


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    train.run(str(folder / "joint.yml"))
    outcome = {"poison": _raised(folder / "poison.yml")}

    feed_data = TinyModel.feed_data

    def feed(model, batch):
        if distributed.rank() == 1 and model.seen >= 2 * len(batch["hq"]):
            os.kill(os.getpid(), signal.SIGTERM)
        feed_data(model, batch)

    TinyModel.feed_data = feed
    outcome["stop"] = _raised(folder / "stop.yml")
    (folder / f"outcome_{rank}.json").write_text(json.dumps(outcome))


def _raised(options: Path) -> list[str]:
    try:
        train.run(str(options))
    except (Exception, SystemExit) as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
