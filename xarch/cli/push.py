"""``xarch push``: upload a student to a model hub."""

from __future__ import annotations

from pathlib import Path

import click

from xarch.cli.completion import names
from xarch.cli.session import Session, define
from xarch.numbers import size


@define("push")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--profile", multiple=True, shell_complete=names("export"), help="Export to upload; by default all.")
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
@click.option("--dry-run", is_flag=True, help="Only list what would be uploaded; needs no network.")
def command(
    session: Session, run: Path, repository: str, profile: tuple[str, ...], private: bool, dry_run: bool
) -> None:
    """Upload the student in RUN, its model card and its exports to the Hugging Face hub.

    Log in first with `hf auth login`, or set HF_TOKEN."""
    from xarch.run.push import push, upload_of

    upload = upload_of(run, repository, profile or None)
    sizes = {name: file.stat().st_size for name, file in upload.files.items()}
    address = None if dry_run else push(upload, private=private)
    document = {"repository": repository, "address": address, "bytes": upload.size, "files": sizes}

    def human(console: object) -> None:
        for name, number in sizes.items():
            click.echo(f"{size(number):>10}  {name}")
        click.echo(f"{size(upload.size):>10}  " + (address or f"in {len(sizes)} files for {repository}; nothing sent"))

    session.emit(document, human)
