"""The page of ``sgpn web``: photos in, the faces found, each photo before and after, each face in 3D. gradio shows it."""

import os
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sgpn_data.photos import READ_SUFFIXES, Photo, photo_bytes, read_photo, write_photo
from sgpn_model.restore.album import PARTS, Job, Watcher, plan, restore_jobs
from sgpn_model.restore.album_report import fitted
from sgpn_model.restore.record import Done
from sgpn_model.restore.restorer import FaceRestorer

PREVIEW = 2048  # longest side of what is shown, in pixels; what is downloaded is the whole photo
CAPTIONS = {
    "crop": "photo",
    "restored": "restored",
    "render": "3D face",
    "mask": "mask",
}
CSS = "footer {justify-content: center} .gradio-container {max-width: 1400px !important; margin: auto}"
TITLE = "SGPN: old faces restored"
ABOUT = (
    "# Restore faces\nDrop one photo or several. Everything happens on this computer: nothing is sent anywhere, "
    "and pictures are deleted after {minutes} minutes."
)


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for.

    Attributes:
        megabytes: of a file. megapixels: of a result. seconds: for the photos that are dropped at once.
        queue: how many requests may wait. minutes: after which pictures are deleted.
    """

    megabytes: int = 50
    megapixels: int = 64
    seconds: int = 300
    queue: int = 20
    minutes: int = 30


class Refused(ValueError):
    """What the page does not do; the message is for the visitor."""


class Deadline(Watcher):
    """Stops what takes too long, as soon as a step is done."""

    def __init__(self, seconds: int):
        self.seconds, self.end = seconds, time.monotonic() + seconds

    def prepared(self, job: Job, faces: int) -> None:
        """As :meth:`Watcher.prepared`."""
        self._check()

    def restored(self, faces: int) -> None:
        """As :meth:`Watcher.restored`."""
        self._check()

    def enlarged(self, job: Job, part: float) -> None:
        """As :meth:`Watcher.enlarged`."""
        self._check()

    def _check(self) -> None:
        if time.monotonic() > self.end:
            raise Refused(f"takes longer than {self.seconds} s, the most here; try fewer or smaller photos")


# ---------------------------------------------------------------------------------------------------------------------
# Restoring


@dataclass(frozen=True)
class Restored:
    """A photo that was dropped, its restoration, and what became of it."""

    job: Job
    done: Done


def restore(
    restorer: FaceRestorer,
    photos: Sequence[str],
    fidelity: float | str,
    scale: int,
    mask: np.ndarray | None,
    folder: Path,
    limits: Limits,
    progress: Any,
) -> tuple[list[Restored], list[str]]:
    """Restores photos as ``sgpn restore --save-parts`` does.

    Args:
        photos: paths. scale: 1, 2 or 4, how many times larger they come out.
        mask: (h, w) uint8, white where the only photo is to be filled; of any size.
        folder: a new folder inside it takes the results. progress: is called with a share from 0 to 1.

    Returns:
        What was restored, and a line for each photo that was not.
    """
    jobs, problems = [], []
    place = Path(tempfile.mkdtemp(prefix="restored-", dir=folder))
    for job in plan({Path(photo): Path() for photo in photos}, place, "auto", True):
        megapixels = photo_bytes(job.source) / 3e6 * scale**2
        if not job.source.exists():
            problems.append(
                f"{job.source.name}: was deleted, for it lay here for {limits.minutes} minutes; drop it again"
            )
        elif megapixels > limits.megapixels:
            problems.append(
                f"{job.source.name}: comes to {megapixels:.0f} megapixels, and {limits.megapixels} are the most; make it smaller"
            )
        else:
            jobs.append(job)
    options: dict[str, Any] = {"fidelity": fidelity, "scale": scale}
    if mask is not None and jobs:
        size = read_photo(jobs[0].source).bgr.shape[1::-1]
        options["mask"] = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    restored = []
    for outcome in restore_jobs(restorer, jobs, True, watcher=Deadline(limits.seconds), **options):
        job = jobs[outcome.index]
        if outcome.error is None:
            restored.append(Restored(job, outcome.result))
        else:
            told = str(outcome.error).replace(str(job.source), job.source.name)
            problems.append(told if told.startswith(job.source.name) else f"{job.source.name}: {told}")
        progress((outcome.index + 1) / len(jobs))
    return restored, problems


def pack(restored: Sequence[Restored]) -> Path:
    """What the visitor takes away: the restored photo as it was written, or a zip of several."""
    if len(restored) == 1:
        return restored[0].job.target
    path = restored[0].job.target.parent / "restored.zip"
    with zipfile.ZipFile(path, "w") as file:
        for each in restored:
            file.write(each.job.target, each.job.target.name)
    return path


def preview(path: Path, size: tuple[int, int] | None = None) -> str:
    """A picture that any browser shows, upright and in the photo's colours; of a size (width, height) if that is given."""
    photo = read_photo(path)
    if size is None:
        shown = fitted(photo.bgr, PREVIEW)
    else:
        larger = size[0] > photo.bgr.shape[1]
        shown = cv2.resize(photo.bgr, size, interpolation=cv2.INTER_LINEAR if larger else cv2.INTER_AREA)
    target = Path(tempfile.mkdtemp(prefix="seen-", dir=os.environ["GRADIO_TEMP_DIR"])) / f"{path.stem}.jpg"
    write_photo(target, Photo(shown, icc_profile=photo.icc_profile))
    return str(target)


def told_of(restored: Sequence[Restored], problems: Sequence[str]) -> str:
    """One line on what was found, and one on each photo that something is to be said of."""
    faces = sum(len(each.done.faces) for each in restored)
    seconds = sum(each.done.seconds for each in restored)
    lines = [f"**{faces} face{'' if faces == 1 else 's'}** restored in {seconds:.1f} s."]
    for each in restored:
        name = each.job.source.name
        lines += [f"{name}: {remark}" for remark in each.done.remarks]
        if each.done.failed:
            lines.append(f"{name}: {len(each.done.failed)} faces stay as they were, for the networks fail on them")
        elif not each.done.faces:
            lines.append(f"{name}: no face was found, so it stays as it is")
    return "\n\n".join([*lines, *problems])


# ---------------------------------------------------------------------------------------------------------------------
# The page


class Page:
    """What the parts of the page do when they are used.

    Args:
        restorer: shared by all visitors, who take turns. folder: where all pictures lie.
    """

    def __init__(self, restorer: FaceRestorer, folder: Path, limits: Limits):
        import gradio

        self.gr, self.restorer, self.folder, self.limits = gradio, restorer, folder, limits
        self.fills = "inpaint" in restorer.task

    def build(self) -> Any:
        """The page, to be launched."""
        gr = self.gr
        kinds = [suffix for suffix in READ_SUFFIXES if suffix not in (".psd", ".pcx")]
        with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
            gr.Markdown(ABOUT.format(minutes=self.limits.minutes))
            results = gr.State([])
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    photos = gr.File(label="Photos", file_count="multiple", file_types=kinds, height=170)
                    automatic = gr.Checkbox(True, label="Keep the photo's own fine detail")
                    fidelity = gr.Slider(
                        0, 1, 0.3, step=0.05, label="Fidelity", info="0: the restoration, 1: the photo", visible=False
                    )
                    scale = gr.Radio([1, 2, 4], value=1, label="Enlarge", info="how many times")
                    button = gr.Button("Restore", variant="primary")
                    told = gr.Markdown()
                    download = gr.DownloadButton("Download", visible=False)
                with gr.Column(scale=3):
                    painting = self._brush(photos) if self.fills else gr.State(None)
                    which = gr.Radio(label="Photo", visible=False)
                    slider = gr.ImageSlider(label="Before and after", interactive=False, height=520)
                    with gr.Column(visible=False) as details:
                        chosen = gr.Radio(label="Face")
                        with gr.Row():
                            found = gr.AnnotatedImage(label="Faces found", height=400)
                            parts = gr.Gallery(
                                show_label=False, columns=2, height=400, object_fit="contain", buttons=[]
                            )
                            model = gr.Model3D(label="In 3D: drag to turn it", height=400)
            automatic.change(
                lambda on: gr.Slider(visible=not on), automatic, fidelity, api_visibility="private", queue=False
            )
            shown = [slider, found, details, chosen]
            face = (self.show_face, [results, which, chosen], [parts, model])
            quick: dict[str, Any] = {"api_visibility": "private", "queue": False}
            # The mesh comes in a step of its own: gradio 6.31 loses a first one that comes with other changes.
            button.click(
                self.press, [photos, automatic, fidelity, scale, painting], [results, told, download, which, *shown],
                api_visibility="private", concurrency_id="networks",
            ).success(*face, **quick)  # fmt: skip
            which.input(self.show, [results, which], shown, **quick).success(*face, **quick)
            chosen.input(*face, **quick)
            gr.Button(visible=False).click(
                self.answer,
                [photos, automatic, fidelity, scale],
                download,
                api_name="restore",
                concurrency_id="networks",
            )
        return page

    def _brush(self, photos: Any) -> Any:
        gr = self.gr
        with gr.Accordion("Fill what is damaged: paint over it", open=False):
            painting = gr.ImageEditor(
                show_label=False, sources=(), transforms=(), layers=False, height=620,
                brush=gr.Brush(default_size=16, colors=["#ffffff"], color_mode="fixed"), buttons=[],
            )  # fmt: skip
        photos.change(self.to_paint, photos, painting, api_visibility="private", queue=False)
        return painting

    def to_paint(self, photos: Sequence[str] | None) -> str | None:
        """The photo that may be painted on, if it is one."""
        if not photos or len(photos) > 1 or photo_bytes(photos[0]) > 3e6 * self.limits.megapixels:
            return None
        try:
            return preview(Path(photos[0]))
        except ValueError:  # the restoration will say what is wrong with it
            return None

    def work(self, photos: Sequence[str] | None, wanted: float | str, scale: int, mask: Any, progress: Any) -> tuple:
        """What was restored, and what was not; a message for the visitor where nothing was."""
        if not photos:
            raise self.gr.Error("Drop a photo first.", print_exception=False)
        restored, problems = restore(self.restorer, photos, wanted, scale, mask, self.folder, self.limits, progress)
        if not restored:
            raise self.gr.Error("\n".join(problems), duration=None, print_exception=False)
        return restored, problems

    def answer(self, photos: list[str], automatic: bool = True, fidelity: float = 0.3, scale: int = 1) -> str:
        """Restores photos; returns the restored photo, or a zip of several. Photos that fail are left out of it."""
        wanted = "auto" if automatic else fidelity
        restored, problems = self.work(photos, wanted, scale, None, lambda share: None)
        for problem in problems:
            self.gr.Warning(problem)
        return str(pack(restored))

    def press(
        self, photos: list[str], automatic: bool, fidelity: float, scale: int, painting: Any, progress: Any = None
    ) -> tuple:
        """What the button does."""
        gr = self.gr
        mask = None
        if painting and len(photos or ()) == 1 and painting["layers"]:
            painted = (painting["layers"][0][..., 3] > 127).astype(np.uint8) * 255
            mask = painted if painted.any() else None
        wanted = "auto" if automatic else fidelity
        restored, problems = self.work(photos, wanted, scale, mask, gr.Progress())
        names = [each.job.target.name for each in restored]
        label = "Download the photo" if len(names) == 1 else f"Download {len(names)} photos"
        return (
            restored,
            told_of(restored, problems),
            gr.DownloadButton(label, value=str(pack(restored)), visible=True),
            gr.Radio(choices=names, value=names[0], visible=len(names) > 1),
            *self.show(restored, names[0]),
        )

    def show(self, results: list[Restored], which: str) -> tuple:
        """A photo before and after, and which faces were found."""
        gr = self.gr
        each = self._find(results, which)
        after, faces = preview(each.job.target), each.done.faces
        seen = read_photo(after).bgr.shape
        before = preview(each.job.source, (seen[1], seen[0]))
        scale = max(seen) / max(read_photo(each.job.source).bgr.shape)
        boxes = []
        for number, face in enumerate(faces, 1):
            x, y, half = face.x * scale, face.y * scale, face.size * scale * 0.6
            left, top = max(0, round(x - half)), max(0, round(y - half))
            boxes.append(((left, top, min(seen[1], round(x + half)), min(seen[0], round(y + half))), str(number)))
        numbers = [str(number) for number in range(1, len(faces) + 1)]
        return (
            (before, after),
            (before, boxes),
            gr.Column(visible=bool(faces)),
            gr.Radio(choices=numbers, value=numbers[0] if numbers else None, visible=len(numbers) > 1),
        )

    def show_face(
        self, results: list[Restored], which: str, number: str | None
    ) -> tuple[list[tuple[str, str]], str | None]:
        """A face's pictures, and its mesh where there is one."""
        if number is None:  # a photo without faces
            return [], None
        job = self._find(results, which).job
        stem = job.target.parent / PARTS / f"{job.name}_{int(number) - 1:02d}"
        pictures = {told: Path(f"{stem}_{part}.png") for part, told in CAPTIONS.items()}
        mesh = Path(f"{stem}_mesh.glb")
        shown = [(str(path), told) for told, path in pictures.items() if path.exists()]
        return shown, str(mesh) if mesh.exists() else None

    def _find(self, results: list[Restored], which: str) -> Restored:
        each = next((each for each in results if each.job.target.name == which), None)
        if each is None or not each.job.target.exists() or not each.job.source.exists():
            raise self.gr.Error(
                f"The pictures were deleted after {self.limits.minutes} minutes. Drop the photos again."
            )
        return each


# ---------------------------------------------------------------------------------------------------------------------
# Serving it


@contextmanager
def serving(restorer: FaceRestorer, limits: Limits, port: int | None = None) -> Iterator[str]:
    """Serves the page to this computer as long as the context lasts; its address. All pictures are gone afterwards.

    Args:
        port: None is the first free one from 7860 on.

    Raises:
        ModuleNotFoundError: gradio is not installed. OSError: the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="sgpn-web-", ignore_cleanup_errors=True) as place:
        folder, done = Path(place).resolve(), threading.Event()
        # gradio reads them when it is imported, or when parts are made.
        os.environ.update(GRADIO_TEMP_DIR=str(folder), GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
        import gradio

        page = Page(restorer, folder, limits).build()
        page.queue(max_size=limits.queue, default_concurrency_limit=1)
        fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        threading.Thread(target=_forget, args=(folder, limits.minutes * 60, done), daemon=True).start()
        try:
            _, address, _ = page.launch(
                server_name="127.0.0.1", server_port=port, share=False, prevent_thread_lock=True, quiet=True,
                max_file_size=f"{limits.megabytes}mb", footer_links=["api"], run_history=False, ssr_mode=False,
                enable_monitoring=False, pwa=False, theme=gradio.themes.Soft(primary_hue="slate", **fonts), css=CSS,
            )  # fmt: skip
            yield address
        finally:
            done.set()
            page.close(verbose=False)


def _forget(folder: Path, seconds: float, done: threading.Event) -> None:
    """Deletes what has lain in the folder for so long, until ``done``."""
    while not done.wait(min(60, seconds / 4)):
        for entry in folder.iterdir():
            forget_older(entry, time.time() - seconds)


def forget_older(entry: Path, moment: float) -> None:
    """Deletes a file, or a folder in which nothing was written since a moment (seconds as of :func:`time.time`)."""
    try:
        if max(path.stat().st_mtime for path in (entry, *entry.rglob("*"))) < moment:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    except OSError:  # it is being written, or is gone already; the next round sees
        return
