"""``--data``: it fills the datasets that name no folder, and says how to make one; no shipped file names one."""

import cv2
import pytest

from sgpn_arch.errors import OptionError
from sgpn_model import cli
from sgpn_model.config.checking import checked_options
from sgpn_model.config.data_folders import fill_roots, missing_roots
from sgpn_model.config.reading import read_options

JOINT = "options/train/sgpn_open_256.yml"


def filled(path, folders, *overrides):
    options, origins = read_options(path, overrides)
    fill_roots(options, origins, [str(folder) for folder in folders])
    return options["datasets"], origins


@pytest.fixture
def faces(tmp_path, astronaut):
    """Two folders: one split by its folders, one by its pictures' names."""
    for name in ("sorted/train/a.png", "sorted/val/b.png", *(f"flat/{number}.png" for number in range(20))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), cv2.resize(astronaut, (64, 64)))
    return [tmp_path / "sorted", tmp_path / "flat"]


def test_every_phase_gets_its_part(faces):
    datasets, _ = filled(JOINT, faces)
    assert {phase: section["split"] for phase, section in datasets.items()} == {"train": "train", "val": "val"}
    assert datasets["train"]["dataroot"] == datasets["val"]["dataroot"] == [str(folder) for folder in faces]
    assert filled("options/test/open_mild.yml", faces)[0]["test"]["split"] == "val"


def test_what_the_file_names_stays(faces):
    datasets, _ = filled(JOINT, faces[:1], "datasets.val.dataroot=elsewhere")
    assert datasets["val"]["dataroot"] == "elsewhere" and "split" not in datasets["val"]
    overrides = [f"datasets.{phase}.dataroot=elsewhere" for phase in ("train", "val")]
    with pytest.raises(OptionError, match=f"^{JOINT}: --data: has no effect, for every dataset names its own"):
        filled(JOINT, faces, *overrides)


def test_nobody_is_trained_on_and_measured(faces):
    """A folder of the file's and of --data: the file's dataset would take all of it, the other one a part."""
    named = f"datasets.train.dataroot={faces[1]}"
    with pytest.raises(OptionError, match=r"datasets\.train\.dataroot: is a folder of --data too"):
        filled(JOINT, faces[1:], named)
    datasets, _ = filled(JOINT, faces[1:], named, "datasets.train.split=train")
    assert datasets["val"]["split"] == "val"
    assert filled("options/test/open_mild.yml", faces, "datasets.test.split=train")[0]["test"]["split"] == "train"


def test_errors_name_the_switch(faces, capsys):
    _, origins = filled(JOINT, faces)
    assert origins.at(["datasets", "train", "dataroot"]).startswith("--data ")
    with pytest.raises(SystemExit):
        cli.main(["train", JOINT, "--data", "nowhere"])
    assert "--data: nowhere: no such folder; `sgpn align PHOTOS -o nowhere` makes it" in capsys.readouterr().err


def test_without_a_folder_the_key_and_the_way_are_told(faces):
    options, _ = read_options(JOINT)
    told = [str(problem) for problem in missing_roots(options)]
    assert [line.partition(":")[0] for line in told] == ["datasets.train.dataroot", "datasets.val.dataroot"]
    assert all("add --data FOLDER. `sgpn align PHOTOS -o FOLDER`" in line for line in told)
    with pytest.raises(OptionError, match=f"^{JOINT}: datasets.train.dataroot: this option is missing"):
        checked_options(JOINT, command="train")
    checked_options(JOINT, files=False)
    checked_options(JOINT, command="train", data=[str(folder) for folder in faces])


@pytest.mark.parametrize("override", ["datasets.train.type=[1]", "datasets.train.type={a: 1}", "datasets.train=5"])
def test_what_is_no_dataset_is_named(override, faces):
    with pytest.raises(OptionError, match="datasets.train"):
        checked_options(JOINT, [override], command="train", data=[str(folder) for folder in faces])
