"""Runs of one MLflow store: started, logged to, read, ended.

They are addressed by id, never through MLflow's active run, which other threads do not see.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.log_requests import log_requests, tag_texts
from tasks.mlflow_calls import Gone
from tasks.mlflow_connection import Connection

if TYPE_CHECKING:
    from mlflow.entities import Run

MetricRow = tuple[str, float, int]
"""(name, value, step)."""
Status = Literal["FINISHED", "FAILED", "KILLED"]

_PAGE = 1000


class MlflowRuns:
    """The runs behind a connection, which opens with the first request. Cheap to create.

    Every method raises StoreError if the store cannot be reached or refuses, and `Gone` if there is no such run.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._call = connection.call

    def start(self, experiment: str, name: str, tags: Mapping[str, str]) -> Run:
        """Start a run, creating its experiment if that does not exist."""
        client, number = self._connection.client, self._connection.open_experiment(experiment)
        made: Run = self._call(
            f"starting run {name}", lambda: client.create_run(number, tags=tag_texts(tags), run_name=name)
        )
        return made

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, object] | None = None,
        metrics: Iterable[MetricRow] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Append to a run, 1,000 metric rows per request. A step that is logged twice shows up twice."""
        client = self._connection.client
        for request in log_requests(params or {}, metrics, tags or {}):
            self._call(f"logging to run {run_id}", functools.partial(client.log_batch, run_id, **request))

    def log_files(self, run_id: str, folder: Path) -> None:
        """Upload the files of `folder` to a run."""
        client = self._connection.client
        send = functools.partial(client.log_artifacts, run_id, str(folder))
        self._call(f"uploading to run {run_id}", send, bulk=True)

    def end(self, run_id: str, status: Status) -> None:
        """End a run now, with the given status."""
        client = self._connection.client
        self._call(f"ending run {run_id}", lambda: client.set_terminated(run_id, status))

    def mark_killed(self, run_id: str) -> None:
        """Set the status of an ended run to KILLED, keeping its end time."""
        client = self._connection.client
        self._call(f"marking run {run_id}", lambda: client.update_run(run_id, status="KILLED"))

    def get(self, run_id: str) -> Run:
        """Return a run, even a deleted one."""
        client = self._connection.client
        found: Run = self._call(f"opening run {run_id}", lambda: client.get_run(run_id))
        return found

    def search(self, experiment: str, text: str = "") -> list[Run]:
        """Return the runs of an experiment that match MLflow's filter `text`, without deleted ones."""
        return list(self.each(experiment, text))

    def each(self, experiment: str, text: str = "") -> Iterator[Run]:
        """Yield what `search` returns, holding a page of it at a time: a run with its tags fills ten kilobytes."""
        client, token = self._connection.client, None
        where = [self._connection.open_experiment(experiment)]
        while True:
            search = functools.partial(client.search_runs, where, text, max_results=_PAGE, page_token=token)
            page: Any = self._call(f"reading the runs of {experiment}", search)
            yield from page
            token = page.token
            if not token:
                return

    def read_text(self, run_id: str, path: str, scratch: Path) -> str:
        """Return a small text file of a run, downloaded into the folder `scratch`. Raises `Gone` if there is none."""
        client = self._connection.client
        doing = f"downloading {path} of run {run_id}"
        folder = path.rpartition("/")[0] or None
        there = self._call(doing, lambda: client.list_artifacts(run_id, folder), bulk=True)
        if path not in {each.path for each in there}:
            raise Gone(f"MLflow store {self._call.display_uri}, {doing}: the run has no such file")
        local = self._call(doing, lambda: client.download_artifacts(run_id, path, str(scratch)), bulk=True)
        return Path(local).read_text(encoding="utf-8")

    def delete(self, run_id: str) -> None:
        """Delete a run; its files stay until `mlflow gc`."""
        client = self._connection.client
        self._call(f"removing run {run_id}", lambda: client.delete_run(run_id))
