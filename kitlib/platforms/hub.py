"""Runs to and from the Hugging Face hub, through huggingface_hub.

hub.push(["first-seed0", "first-seed1"], "USER/NAME")     # a private repository, a folder a run, a model card
hub.pull("USER/NAME")                                     # the same runs here, checked, under USER--NAME--RUN
hub.local("hf:USER/NAME")                                 # the name to ask: of the run, or of the blend of several
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kitlib.core import paths, storage
from kitlib.core.errors import KitError, one_line, shorten, shown
from kitlib.evaluation import ensemble, runs
from kitlib.evaluation.runs import Run
from kitlib.platforms import hub_card, hub_files

log = logging.getLogger(__name__)

ORIGIN = "hub.json"  # in a pulled run: where it came from
SPARE = 1.1  # times the size of what is pulled has to be free on the disk
BESIDE = ("README.md", ".gitattributes")  # of the repository, not of a run


def push(names: Sequence[str], repo: str, public: bool = False) -> str:
    """Push finished runs to a repository and return its address; it is made, private unless `public`, if it is absent.

    The runs that route them go too. Runs of the repository that are not named stay. Nothing is pushed unless all runs
    are whole and hold nothing of this machine. Raises KitError without a token, a network or the right to write.
    """
    _checked_repo(repo)
    chosen = _with_routers([runs.open_run(name) for name in dict.fromkeys(names)])
    if not chosen:
        raise KitError("hub push: expected at least one run; got none")
    paths.runs_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.runs_dir(), prefix=".pushing-") as beside:
        folder = Path(beside)
        for run in chosen:
            hub_files.stage(run, folder)
            log.info("%s: %s", run.name, hub_card.licence(run.settings).sentence)
        from huggingface_hub import HfApi, get_token

        if not get_token():
            raise KitError("hub push: expected a token that may write: `hf auth login`, or set HF_TOKEN; found none")
        api = HfApi()
        with _told(repo, "pushed to"):
            url = api.create_repo(repo, private=not public, exist_ok=True)
            described = _there(api, repo, folder) | {r.name: hub_card.describe(r.params, r.metrics) for r in chosen}
        text = hub_card.card(repo, described, hub_card.references(chosen[0]))
        (folder / "README.md").write_text(text, encoding="utf-8")
        with _told(repo, "pushed to"):
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=f"Runs {', '.join(run.name for run in chosen)}",
                delete_patterns=[f"{run.name}/*" for run in chosen],  # files of an earlier push that are gone
            )
    return str(url)


def pull(repo: str) -> list[str]:
    """Pull the runs of a repository and return their names here, USER--NAME--RUN; an interrupted pull is resumed.

    Only plain files are taken, and a run only if it is as it was pushed. Without a network the runs that were pulled
    before are returned. Raises KitError for a repository that holds no run, and for want of a token, rights or space.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    _checked_repo(repo)
    api = HfApi()
    try:
        with _told(repo, "pulled from"):
            commit = str(api.model_info(repo).sha)
            tree = api.list_repo_tree(repo, revision=commit, recursive=True)
            files = {file.path: file.size for file in tree if isinstance(file, RepoFile)}
    except KitError as error:
        if not (here := _pulled(repo)):
            raise
        log.warning("%s; the runs that were pulled before are taken", error)
        return here
    found = [name.partition("/")[0] for name in files if re.fullmatch(r"[^/]+/params\.json", name)]
    for name in found:
        paths.file_name(name, f"{repo}: run name")
    if not found:
        raise KitError(f"{repo}: expected runs that `kitlib hub push` has written; got {shorten(files, 3)}")
    wanted = [n for n in files if n.partition("/")[0] in found and hub_files.is_plain(n.partition("/")[2])]
    if left := sorted(set(files) - set(wanted) - set(BESIDE)):
        log.warning("%s: %s stays on the hub: only plain files of runs are taken", repo, shorten(left, 3))
    names = {run: _local_name(repo, run) for run in found}
    if all(_commit(paths.run_dir(name)) == commit for name in names.values()):
        return list(names.values())
    into = paths.runs_dir() / f".pulling-{_local_name(repo, '')}"
    into.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(into).free, SPARE * sum(files[name] for name in wanted)
    if free < needed:
        raise KitError(f"{repo}: expected {needed / 1e9:.1f} GB of free disk; there are {free / 1e9:.1f} GB")
    with storage.lock(into.with_name(into.name + ".lock"), f"{repo} is being pulled by another process"):
        with _told(repo, "pulled from"):
            snapshot_download(repo, revision=commit, local_dir=into, allow_patterns=[_literally(n) for n in wanted])
        for path in sorted(into.rglob("*")):  # of an earlier commit
            if path.is_file() and path.relative_to(into).as_posix() not in wanted and ".cache" not in path.parts:
                path.unlink()
        try:
            for run in found:
                hub_files.check(into / run)
        except KitError:
            shutil.rmtree(into)  # a file that is not as it was pushed is not taken up again
            raise
        for run, name in names.items():
            _accept(into / run, name, names, {"repo": repo, "run": run, "commit": commit})
        shutil.rmtree(into)
    return list(names.values())


def local(name: str) -> str:
    """The name here of `hf:USER/NAME` or `hf:USER/NAME/RUN`, whose runs are pulled first; any other name as it is.

    Several runs of one repository, without those that only route others, get a record as of a submission, with equal
    weights, by which they answer as one.
    """
    if not name.startswith("hf:"):
        return name
    repo, run = re.fullmatch(r"([^/]*/?[^/]*)/?(.*)", name[3:], re.DOTALL).groups()  # type: ignore[union-attr]
    names = pull(repo)
    if run:
        if _local_name(repo, run) not in names:
            known = ", ".join(pulled.removeprefix(_local_name(repo, "")) for pulled in names)
            raise KitError(f"{repo}: expected one of its runs, {known}; got {shown(run)}")
        return _local_name(repo, run)
    routers = {runs.open_run(each).settings.get("router") for each in names}
    asked = [each for each in names if each not in routers] or names
    if len(asked) == 1:
        return asked[0]
    blend = _local_name(repo, "").removesuffix("--")
    weights, ones = dict.fromkeys(asked, 1 / len(asked)), dict.fromkeys(asked, 1.0)
    record = {"members": ensemble.Blend(weights, weights, ones, ones).as_dict()}
    storage.write_json(paths.submissions_dir() / f"{blend}.json", record)
    return blend


def _checked_repo(repo: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", repo, re.ASCII):
        raise KitError(f"repository: expected USER/NAME as in its address on the hub; got {shown(repo)}")


def _with_routers(chosen: list[Run]) -> list[Run]:
    """Runs, and before them those that route them."""
    named = {str(run.settings.get("router", "")): None for run in chosen}
    routers = [runs.open_run(name) for name in named if name not in ("", "known", "logistic")]
    found = {run.name: run for run in [*routers, *chosen]}
    return list(found.values())


def _there(api: Any, repo: str, beside: Path) -> dict[str, dict[str, Any]]:
    """Descriptions of the runs that a repository holds already."""
    described = {}
    files = set(api.list_repo_files(repo))
    for name in sorted(file.partition("/")[0] for file in files if re.fullmatch(r"[\w.-]+/params\.json", file)):
        if f"{name}/metrics.json" in files:
            with tempfile.TemporaryDirectory(dir=beside.parent, prefix=".reading-") as into:
                parts = [
                    storage.read_json(api.hf_hub_download(repo, f"{name}/{part}.json", local_dir=into))
                    for part in ("params", "metrics")
                ]
            described[name] = hub_card.describe(*parts)
    return described


def _local_name(repo: str, run: str) -> str:
    """The name of a run here; a long one ends in a checksum."""
    name = f"{repo.replace('/', '--')}--{run}"
    return name if len(name) <= 100 else f"{name[:83]}-{storage.digest(name)}"


def _literally(name: str) -> str:
    """A pattern that matches only this name."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _origin(folder: Path) -> dict[str, Any]:
    return storage.read_json(folder / ORIGIN) if (folder / ORIGIN).is_file() else {}


def _commit(folder: Path) -> str:
    """The commit that a pulled run is of, "" for none."""
    return str(_origin(folder).get("commit", ""))


def _pulled(repo: str) -> list[str]:
    """The runs here that were pulled from a repository."""
    return [name for name in runs.list_runs() if _origin(paths.run_dir(name)).get("repo") == repo]


def _accept(folder: Path, name: str, names: dict[str, str], source: dict[str, str]) -> None:
    """Give a checked run its name here, also where it names its router, and its place among the runs."""
    params = Run(name, folder).params
    router = params["settings"].get("router")
    if router not in (None, "known", "logistic", *names):
        log.warning("%s: its router %s is not in the repository: it cannot be asked", name, shown(router))
    if router in names:
        params["settings"]["router"] = names[router]
    storage.write_json(folder / "params.json", params | {"run": name})
    (folder / storage.SEAL).unlink()  # of the files as they were pushed
    storage.write_json(folder / ORIGIN, source)
    target = paths.run_dir(name)
    with runs.lock(name):
        if target.is_dir():
            shutil.rmtree(target)
        folder.rename(target)


@contextmanager
def _told(repo: str, what: str) -> Iterator[None]:
    """Turn what the client raises into one sentence; its exceptions differ between versions, so none is named alone."""
    from huggingface_hub import errors

    try:
        yield
    except KitError:
        raise
    except errors.OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set: unset it"
    except errors.RepositoryNotFoundError:
        reason = "there is none, or it is private and the token (`hf auth login`, HF_TOKEN) may not read it"
    except errors.GatedRepoError:
        reason = "its owner gives access only on request: ask for it on its page"
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        refused = {401: "the token is not accepted: `hf auth login`, or set HF_TOKEN to a new one",
                   403: "the token may not do this: it has to allow writing there"}  # fmt: skip
        reason = refused.get(status) or f"the hub answers {status or one_line(error)}: try again later"
    except OSError as error:
        if error.errno and type(error).__module__ == "builtins" and not isinstance(error, ConnectionError):
            raise  # of the disk
        reason = f"the hub cannot be reached ({type(error).__name__})"
    except Exception as error:  # of whatever the client sends requests with
        reason = f"the hub cannot be reached ({type(error).__name__})"
    else:
        return
    raise KitError(f"{repo} could not be {what}: {reason}")
