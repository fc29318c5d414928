"""Compute on several processes of this machine or of others, by way of dask.distributed.

Both are one thing: `--workers N` starts a scheduler and N workers here, `--scheduler ADDRESS` uses
those that are running. A task is a function and an update whose numbers are read by the worker; the
results are spectra, which are small. As many tasks are under way as there are threads, the largest
first, so that a worker's end concerns none that was only waiting. Every task uses one thread of
BLAS: results are bit for bit those of one process with one thread.
"""

import contextlib
import functools
import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from analysis import UserError, extras
from analysis.numerics import parallel
from analysis.work import kept

Item = TypeVar("Item")
Result = TypeVar("Result")
TRIES = 2  # on processes that end meanwhile, before an item is given up; of --workers
PATIENCE = 10  # seconds until a scheduler must have answered
LOOK = 2.0  # seconds between two looks for workers that came or went


@dataclass(frozen=True)
class Lost:
    """An item of which there is no result; reason: one line without the item's name."""

    reason: str


class Cluster:
    """Processes that compute; make one with `of_workers` or `at`."""

    def __init__(self, client: Any, what: str, say: Callable[[str], object]) -> None:
        self._client, self._what, self._say = client, what, say

    def each(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        size: Callable[[Item], float],
    ) -> Iterator[tuple[Item, Result | Lost]]:
        """Yield each item with function(item), as they are finished; the largest start first.

        Lost stands for the result of an item whose process ended, again and again. Raises UserError
        if the scheduler is lost, or a worker has other versions or does not see the files.
        """
        import asyncio  # it takes a tenth of the time of a short command to import

        from distributed import wait

        waiting = sorted(items, key=size)  # the largest is last, and popped first
        task = functools.partial(_task, function, str(Path.cwd()), kept.versions())
        running: dict[Any, Item] = {}
        while waiting or running:
            slots = self._slots()
            while waiting and len(running) < slots:
                item = waiting.pop()
                running[self._client.submit(task, item, pure=False)] = item
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                wait(list(running), timeout=LOOK, return_when="FIRST_COMPLETED")
            for future in [future for future in running if future.status != "pending"]:
                item = running.pop(future)
                yield item, self._result(future)

    def _slots(self) -> int:
        """Return how many tasks can run at once; wait until it is at least one."""
        told = False
        while True:
            try:
                slots = sum(self._client.nthreads().values())
            except (OSError, RuntimeError, ValueError):
                raise self._gone() from None
            if slots:
                return slots
            if not told:
                self._say(f"{self._what}: there is no worker yet; waiting for one")
                told = True
            with contextlib.suppress(OSError):  # none came; or the scheduler is gone, as told above
                self._client.wait_for_workers(1, timeout=LOOK)

    def _result(self, future: Any) -> Any:
        """Return what a finished task came to."""
        from distributed import KilledWorker

        if future.status in ("cancelled", "lost"):
            raise self._gone()
        try:
            return future.result()
        except KilledWorker:
            return Lost(
                "the process that worked on it ended, again and again, most likely for want of"
                " memory; expected more memory for each worker, or fewer workers on a machine"
            )
        except ModuleNotFoundError as error:
            raise UserError(
                f"{self._what}: a worker lacks {error.name}; expected the packages of this process"
            ) from None

    def _gone(self) -> UserError:
        return UserError(
            f"{self._what}: the connection is lost; what is finished is kept with --out: repeat the"
            " command when the scheduler is back"
        )


@contextlib.contextmanager
def of_workers(workers: int, say: Callable[[str], object]) -> Iterator[Cluster]:
    """Yield `workers` processes of this machine, which end with the block or with this process."""
    distributed = _distributed()
    import dask

    settings = {"distributed.scheduler.allowed-failures": TRIES - 1, **_QUIET}
    with dask.config.set(settings):
        local = distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=None,
            memory_limit=0,  # the machine's own limit; a share of it each could be too little
            silence_logs=_SILENT,
        )
        with local, distributed.Client(local) as client:
            yield Cluster(client, f"--workers {workers}", say)


@contextlib.contextmanager
def at(address: str, say: Callable[[str], object]) -> Iterator[Cluster]:
    """Yield the workers of the scheduler at an address, tcp://host:port; UserError without one."""
    distributed = _distributed()
    import dask

    what = f"--scheduler {address}"
    with dask.config.set(_QUIET):
        failed = ""
        try:
            client = distributed.Client(address, timeout=PATIENCE)
        except (OSError, ValueError, TypeError) as error:
            failed = type(error).__name__
        if failed:
            # The finaliser of the half-made client takes a lock: it must not run while another
            # client holds it.
            gc.collect()
            raise UserError(
                f"{what}: no scheduler answers there ({failed}); expected the address that"
                " `dask scheduler` prints, such as tcp://host:8786"
            )
        try:
            yield Cluster(client, what, say)
        finally:
            with contextlib.suppress(Exception):  # a scheduler that is gone
                client.close(timeout=2)


_SILENT = 60  # above every level of logging: what happens is reported here, in one line
_QUIET: Mapping[str, Any] = {"distributed.comm.timeouts.connect": f"{PATIENCE}s"}


def _distributed() -> Any:
    """Return dask.distributed, silent; MissingLibraryError without it."""
    import logging

    with extras.named():
        import distributed
    for name in ("distributed", "asyncio", "tornado"):
        logging.getLogger(name).setLevel(_SILENT)
    return distributed


def _task(
    function: Callable[[Item], Result], directory: str, expected: Mapping[str, Any], item: Item
) -> Result:
    """Return function(item), computed in a worker with one thread; paths as where it was asked."""
    _check(expected, directory)
    with contextlib.chdir(directory), parallel.reproducible():
        return function(item)


def _check(expected: Mapping[str, Any], directory: str) -> None:
    """Raise UserError in a worker that would compute other numbers, or sees other files."""
    where = f"the worker on {os.uname().nodename}"
    for name, version in kept.versions().items():
        if version != expected[name]:
            raise UserError(f"{where} has {name} {version}; expected {expected[name]}, as here")
    if not Path(directory).is_dir():
        raise UserError(f"{where} has no directory {directory}; expected the same files everywhere")
