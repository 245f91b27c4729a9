"""The client of a backend: what it offers, sending slices, segmenting; numpy and the standard library only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from SDFSMISLib.client.capabilities import Capabilities, ask_capabilities
from SDFSMISLib.client.connection import Address, Connection, Interrupt, Route, tls_context
from SDFSMISLib.client.errors import BackendError
from SDFSMISLib.client.remote_run import RemoteRun, RunState
from SDFSMISLib.client.upload import OnProgress, send, shipment_of
from SDFSMISLib.errors import InputError
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.support import SupportSet, SupportSlice

__all__ = ["Client"]

TIMEOUT = 30.0  # seconds without a sign of life; while it computes, a backend gives one every five


class Client:
    """A backend, seen from here. Making one sends nothing; it holds no connection, and threads may share it."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        ca_file: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        """
        Args:
            url: ``localhost:7861``, ``https://computer/path``; where no scheme stands, http is taken.
            token: that the backend was started with; None = it needs none.
            ca_file: PEM file of the certificate to trust (a self-signed one, or a hospital's own authority), instead of
                those that this computer trusts.
            timeout: seconds to wait for any sign of life.

        Raises:
            InputError: for what is no address, a token that no header can carry, or an unreadable certificate.
        """
        address = Address.of(url)
        token = (token or "").strip() or None
        if token is not None and not (token.isascii() and token.isprintable()):
            raise InputError("The token has characters that no token has; copy it again from where it was shown.")
        context = tls_context(ca_file) if address.scheme == "https" else None
        self._route = Route(address, token, context, timeout)

    @property
    def url(self) -> str:
        """The address as it is used."""
        return self._route.address.url

    @property
    def host(self) -> str:
        """``computer:port``, to name it to people."""
        return self._route.address.name

    @property
    def is_local(self) -> bool:
        """Whether it is on this computer; to another one, nothing should be sent before the user has agreed."""
        return self._route.address.is_local

    def capabilities(self) -> Capabilities:
        """What the backend says of itself.

        Raises:
            BackendError: where there is none, it refuses, or it is of another protocol.
        """
        with Connection(self._route, Interrupt()) as connection:
            return ask_capabilities(connection)

    def upload(
        self,
        stack: SliceStack,
        indices: Sequence[int],
        pieces: Sequence[SupportSlice] = (),
        *,
        on_progress: OnProgress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> None:
        """Send slices that the backend has not yet, so that a later run begins at once; :meth:`segment` does it itself.

        Args:
            indices: slices of the stack.
            pieces: painted slices, whose images are sent.
            on_progress: called with the number of slices that are there, and the number of all.
            cancel: asked between slices; True stops it with `Cancelled`.

        Raises:
            BackendError: where there is no backend, it refuses, or does not take so much.
            Cancelled: where ``cancel`` said so.
        """
        with Connection(self._route, Interrupt()) as connection:
            limits = ask_capabilities(connection).limits
            limits.check(stack, len(pieces), 0)
            send(connection, shipment_of(stack, indices, pieces, lambda: None), limits, on_progress, cancel)

    def segment(
        self,
        stack: SliceStack,
        support: SupportSet,
        *,
        labels: Sequence[int] | None = None,
        slices: Sequence[int] | None = None,
        strategy: str = "propagate",
        region: str = "auto",
        threshold: float = 0.5,
        on_upload: OnProgress | None = None,
        cancel: Callable[[], bool] | None = None,
        on_trouble: Callable[[BackendError], None] | None = None,
        patience: float = 60.0,
        resume: RunState | None = None,
    ) -> RemoteRun:
        """A run: iterate over it to get the finished slices, in a ``with`` block so that it ends with the block.

        Nothing is sent before the first slice is asked for. What the backend lacks is sent first. Where the connection
        breaks, the run goes on by itself with what has not come yet. Slices that are painted on this stack do not come.

        Args:
            labels: label values; None = all of the support.
            slices: slices that are wanted, from 0; None = all.
            strategy: ``propagate`` or ``independent``. region: ``auto`` or ``full``.
            threshold: probability above which a voxel belongs to the structure, between 0 and 1.
            on_upload: called with the number of slices that are on the backend, and the number of all.
            cancel: asked at every sign of life of the backend, every five seconds at least; True stops the run.
                :meth:`RemoteRun.cancel` stops it at once.
            on_trouble: called with what is wrong, before it is waited and tried again.
            patience: seconds to go on trying where nothing new comes because the backend is not there; for one that is
                busy, and says when to come again, fifteen times as long.
            resume: state of an earlier run with the same arguments; what it has received does not come again.

        Raises (here):
            InputError: where a slice is outside the stack, a label is painted nowhere, an option is unknown, or the
                state is of another run.
        Raises (while iterating):
            BackendError: where there is no backend, it refuses, fails, or is lost for longer than ``patience``.
            Cancelled: where ``cancel`` said so, or :meth:`RemoteRun.cancel` was called.
        """
        wanted = tuple(dict.fromkeys(support.labels if labels is None else map(int, labels)))
        if not wanted:
            raise InputError("The support has nothing painted; paint the structure on at least one slice.")
        if not 0 < threshold < 1:
            raise InputError(f"The threshold {threshold} was given; a probability between 0 and 1 is accepted.")
        shown = {id(piece) for label in wanted for piece in support.for_label(label)}
        pieces = tuple(piece for piece in support.slices if id(piece) in shown)
        return RemoteRun(
            self._route,
            stack,
            pieces,
            wanted,
            slices,
            strategy,
            region,
            threshold,
            on_upload,
            cancel,
            on_trouble,
            patience,
            resume,
        )
