"""``sgpn bulk``: the photos of a folder, bucket or manifest in, restored photos and a table of them out, on many workers."""

import argparse
import functools
from collections.abc import Callable
from typing import Any, NoReturn

from sgpn_model.cli.arguments import add_cluster, add_restoring, add_results, face_choice, settings_of

DESCRIPTION = (
    "Restore the photos of an archive with Ray Data. Writes DESTINATION/NAME for each photo, and a table with a row for each to "
    "DESTINATION/table. Runs again do only what is missing."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, and what runs."""
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="a folder or URL (s3://, gs://, abfs:// and others), whose photos are found in folders inside, too; or a "
        "manifest: a .parquet or .csv with a column of paths, URLs or bytes",
    )
    add("-o", "--output", required=True, metavar="DESTINATION", help="folder or URL for the results and the table")
    add_cluster(parser)
    add_restoring(parser, threads=False)
    add_results(parser)
    parser.set_defaults(run=functools.partial(run, parser.error))


def run(
    usage_error: Callable[[str], NoReturn],
    source: str,
    output: str,
    column: str | None,
    retry_failed: bool,
    workers: int | None,
    cores: int,
    chunk: int,
    address: str | None,
    aligned: bool,
    only_largest: bool,
    faces: int | None,
    min_face: int,
    max_face: int | None,
    min_score: float,
    scale: int,
    min_size: int,
    ext: str,
    depth: int,
    **building: Any,
) -> int:
    """Restores, and returns the exit code: 0 if all went well, 1 if a photo failed.

    Args:
        as of :class:`sgpn_model.bulk.job.Bulk` and ``FaceRestorer.restore``. output: the destination. depth: bits of results.
            building: what ``FaceRestorer.from_pretrained`` takes.

    Raises:
        InputError: there is nothing to do, or the job had to stop.
        CheckpointError: the weights cannot be used.
    """
    choice = face_choice(usage_error, faces, min_face, max_face, min_score)
    from sgpn_model.bulk.job import Bulk

    options = dict(aligned=aligned, only_largest=only_largest, choice=choice, scale=scale, min_size=min_size)
    tally = Bulk(
        source,
        output,
        column=column,
        ext=ext,
        retry_failed=retry_failed,
        building={**building, "threads": cores},
        options={**options, "deep": depth == 16},
        settings=settings_of(
            building, choice, scale, min_size, depth, aligned=aligned, only_largest=only_largest, ext=ext
        ),
        workers=workers,
        cores=cores,
        chunk=chunk,
        address=address,
    ).run()
    print(f"{tally}: results in {output}")
    return 1 if tally.failed else 0
