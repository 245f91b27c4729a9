"""The client of a backend: its capabilities, and runs on it; numpy and the standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from SDFSMISLib.client.capabilities import Capabilities, fetch_capabilities
from SDFSMISLib.client.connection import Address, Connection, Endpoint, Interrupt, tls_context
from SDFSMISLib.client.errors import BackendError
from SDFSMISLib.client.remote_run import RemoteRun
from SDFSMISLib.client.upload import OnProgress
from SDFSMISLib.errors import InputError
from SDFSMISLib.options import RunOptions
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.support import SupportSet

__all__ = ["Client"]

TIMEOUT = 30.0  # seconds without a sign of life; while it computes, a backend gives one every five


class Client:
    """The client of one backend. It holds no connection, and threads may share it; creating one sends nothing.

    >>> client = Client("gpu-server:7861", token="secret")
    >>> client.url, client.is_local
    ('http://gpu-server:7861', False)
    """

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
            url: ``localhost:7861`` or ``https://computer/path``; http if no scheme is given.
            token: the one that the backend was started with; None if it needs none.
            ca_file: PEM file of the certificate to trust (a self-signed one, or a hospital's own authority), instead of
                those that this computer trusts.
            timeout: seconds to wait for any sign of life.

        Raises:
            InputError: for an invalid address, a token that no HTTP header can hold, or an unreadable certificate.
        """
        address = Address.of(url)
        token = (token or "").strip() or None
        if token is not None and not (token.isascii() and token.isprintable()):
            raise InputError("The token has characters that no token has; copy it again from where it was shown.")
        context = tls_context(ca_file) if address.scheme == "https" else None
        self._endpoint = Endpoint(address, token, context, timeout)

    @property
    def url(self) -> str:
        """The complete address."""
        return self._endpoint.address.url

    @property
    def host(self) -> str:
        """``computer:port``, for messages."""
        return self._endpoint.address.name

    @property
    def is_local(self) -> bool:
        """Whether the backend is on this computer; nothing should be sent to another one before the user has agreed."""
        return self._endpoint.address.is_local

    def capabilities(self) -> Capabilities:
        """Version, model, device and limits of the backend.

        Raises:
            BackendError: if there is no backend, it refuses, or has another protocol.
        """
        with Connection(self._endpoint, Interrupt()) as connection:
            return fetch_capabilities(connection)

    def segment(
        self,
        stacks: Mapping[int, SliceStack],
        support: SupportSet,
        options: RunOptions = RunOptions(),
        *,
        labels: Sequence[int] | None = None,
        slices: Sequence[int] | None = None,
        on_upload: OnProgress | None = None,
        cancel: Callable[[], bool] | None = None,
        on_retry: Callable[[BackendError], None] | None = None,
        patience: float = 60.0,
    ) -> RemoteRun:
        """A run: iterate over it to get the finished slices, in a ``with`` block so that it ends with the block.

        Nothing is sent before the first slice is requested. Slices that the backend lacks are sent first. After a lost
        connection the run continues by itself with what has not come yet. Painted slices of the scan do not come.

        Args:
            stacks: the slices along each axis of the run, by axis, the main one first (`SupportSet.axes_on`). The
                slices of the others are not sent: the backend cuts them from those of the main one.
            support: painted slices, of this scan along any axis, or of others.
            options: strategy, region and threshold; the batch size is the backend's own.
            labels: label values; None = all of the support.
            slices: indices of the slices to segment along the main axis, from 0; None = all.
            on_upload: called with the number of slices that are on the backend, and the number of all.
            cancel: called at every sign of life of the backend, at least every five seconds; True stops the run.
                :meth:`RemoteRun.cancel` stops it at once.
            on_retry: called with the problem before each pause after which the run tries again.
            patience: seconds to keep trying without progress while the backend is unreachable; fifteen times as long
                for one that is busy and says when to come again.

        Raises:
            InputError: here, if a slice is outside the scan or a label is painted nowhere; while iterating, if the
                backend does not know the strategy or region.
            BackendError: while iterating, if the backend is unreachable, refuses, fails, or is lost for longer than
                ``patience``.
            Cancelled: while iterating, if ``cancel`` returned True, or :meth:`RemoteRun.cancel` was called.
        """
        requested = tuple(dict.fromkeys(support.labels if labels is None else map(int, labels)))
        if not requested:
            raise InputError("The support has nothing painted; paint the structure on at least one slice.")
        needed = {id(painted) for label in requested for painted in support.for_label(label)}
        return RemoteRun(
            self._endpoint,
            stacks,
            [painted for painted in support.slices if id(painted) in needed],
            requested,
            slices,
            options,
            on_upload,
            cancel,
            on_retry,
            patience,
        )
