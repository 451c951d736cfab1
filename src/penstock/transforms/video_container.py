"""Files with streams in them, through PyAV: mp4, mov, m4a, webm, mkv, avi, aac and what else FFmpeg reads.

The only module that imports PyAV. A file's content chooses its decoder, so only formats that hold their own data are
allowed: a playlist or a list of files would make FFmpeg open what it names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from penstock.errors import BadMedia
from penstock.transforms.media import missing_extra
from penstock.transforms.media_file import MediaFile

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,m4v,flv,asf,ogg,aac,mp3,flac,wav,w64,"
    "aiff,au,caf,amr,ac3,eac3,dts,wv,ape,tta,ivf,mxf,gif,apng"
)
_SEEKABLE = ("mov", "mp4", "matroska", "webm")


class Container:
    """An open file with streams.

    Args:
        media: the file; closed with this.

    Raises:
        ConfigError: the av package is missing.
        BadMedia: it is nothing that can be read ("unreadable").

    Attributes:
        streams: PyAV's streams of the file.
        can_seek: whether its seeks go by an index, so that what follows has the right time stamps.
    """

    def __init__(self, media: MediaFile) -> None:
        try:
            import av
        except ImportError as error:
            raise missing_extra("video", "av", "reading video, and sound in mp4, m4a or aac files") from error
        self._av: Any = av
        self._media = media
        # With "file:" a path is a path, whatever scheme it looks like.
        source = media.file if media.path is None else f"file:{media.path}"
        with self.reading("unreadable"):
            self._container: Any = av.open(source, options={"format_whitelist": _FORMATS}, metadata_errors="replace")
        self.streams = self._container.streams
        self.can_seek = not set(self._container.format.name.split(",")).isdisjoint(_SEEKABLE)

    @contextmanager
    def reading(self, reason: str) -> Iterator[None]:
        """Say FFmpeg's errors as `BadMedia`."""
        try:
            yield
        except BadMedia:
            raise
        except self._av.FFmpegError as error:
            raise self._media.bad(reason, f"cannot be read: {error}") from error

    def bad(self, reason: str, what: str) -> BadMedia:
        """Make the error that says what is wrong with this file."""
        return self._media.bad(reason, what)

    def seek(self, stream: Any, pts: int) -> None:
        """Go to the last point at or before a time stamp of a stream from which it can be decoded."""
        with self.reading("corrupt"):
            self._container.seek(pts, stream=stream, backward=True)

    def packets(self, stream: Any) -> Iterator[Any]:
        """Read a stream's packets without decoding them, from where the file is."""
        with self.reading("corrupt"):
            yield from self._container.demux(stream)

    def frames(self, stream: Any) -> Iterator[Any]:
        """Decode a stream from where the file is."""
        with self.reading("corrupt"):
            yield from self._container.decode(stream)

    def scaler(self) -> Any:
        """Give what converts frames: one for many frames, for its tables are made for a pair of sizes."""
        return self._av.video.reformatter.VideoReformatter()

    def close(self) -> None:
        """Close the decoders and the file."""
        self._container.close()
        self._media.close()


def samples_of(frame: Any) -> np.ndarray:
    """Give a decoded piece of sound as float32 [frames, channels], full scale being 1."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    if values.dtype.kind == "f":
        return values.astype(np.float32, copy=False)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    scaled: np.ndarray = values.astype(np.float32) / -float(np.iinfo(values.dtype).min)
    return scaled
