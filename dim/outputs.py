"""Where results go: files and folders that appear whole or not at all, places that are tried before work begins, and one writer
per run folder.

A result is written under a temporary name beside its place and takes the place in one step. Symbolic links are followed.
Devices and pipes, such as `/dev/null` and `/dev/stdout`, are written straight, and so are places that nothing can be renamed
onto: files and folders that are mounted into a container.
"""

import contextlib
import ctypes
import errno
import glob
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock

from dim.errors import InputError

LOCK = ".lock"
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
# As `_temporary` names them, and as earlier versions did.
_LEFTOVER = re.compile(r"\..*\.((?P<host>[0-9a-f]{8})-(?P<process>\d+)-)?[0-9a-f]{8}\.(tmp|old)", re.DOTALL)
_LONGEST = 100  # characters of a name that its temporary name repeats
_DAY = 24 * 3600.0
_SYNC_THREADS = 8  # more gained nothing on ext4
# What renaming onto a mounted place, and creating a file beside one, may fail with.
_MOUNTED = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


# --- files ------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes its place, on failure it is removed.

    A reader sees the old file or the new one, never a part, also after a kill or a full disk.
    """
    path = followed(path)
    if not _is_special(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    straight = _is_special(path) or (path.is_file() and not os.access(path.parent, os.W_OK))
    temporary = _temporary(Path(tempfile.gettempdir()) / "dim" if straight else path)
    try:
        yield temporary
        _sync_file(temporary)
        if straight or not _moved(temporary, path):
            with open(temporary, "rb") as content, open(path, "wb") as handle:
                shutil.copyfileobj(content, handle)
            temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _moved(temporary: Path, path: Path) -> bool:
    """Put a file in the place of another; False if that is a mount, onto which nothing can be renamed."""
    try:
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in _MOUNTED or not path.is_file():
            raise
        return False
    sync_folder(path.parent)
    return True


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def require_writable(path: Path | str, option: str = "output") -> None:
    """Raise InputError if a file could not be written, before there is anything to write.

    Args:
        path: of the file.
        option: what the user calls it, for the message.
    """
    place = followed(path)
    if place.is_dir():
        raise InputError(f"{option} is {str(path)!r}, which is a folder: expected the name of a file")
    if place.exists() and os.access(place, os.W_OK) and (_is_special(place) or not _may_create(place.parent)):
        return
    if place.exists() and not _is_special(place) and not os.access(place, os.W_OK):
        raise InputError(f"{option} is {str(path)!r}, which may not be written: choose another place, or change its mode")
    _require_creatable(place.parent, path, option)


def require_new_file(path: Path | str, *, overwrite: bool = False) -> None:
    """Raise InputError if a file is at `path` and `overwrite` is not set, or if none can be written there."""
    require_writable(path)
    if not overwrite and followed(path).is_file():
        raise InputError(f"output {path} is there already: name a new file, or pass --overwrite to replace it")


# --- folders ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_folder(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; on success its content becomes that of `path`, on failure it is removed.

    It takes the place of `path` in one step, where the system can exchange two folders. Into a folder that is a mount, or that
    lies where nothing may be created, files are moved one by one, JSON files last.

    Raises:
        InputError: if `path` exists and is not an empty folder, unless `overwrite`, which then replaces it; also if it has come
            to be while the content was made.
    """
    require_free(path, overwrite=overwrite)
    path = followed(path).absolute()
    inside = path.is_dir() and (os.path.ismount(path) or not _may_create(path.parent))
    if not inside:
        path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in (path if inside else path.parent).glob(f".{glob.escape(path.name[:_LONGEST])}.*"):
        _remove_if_leftover(leftover)
    temporary = _temporary(path / path.name if inside else path)
    temporary.mkdir()
    try:
        yield temporary
        require_free(path, overwrite=overwrite, but=temporary.name)
        _sync_tree(temporary)
        if inside:
            _move_into(temporary, path)
        else:
            _take_place(temporary, path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_free(path: Path | str, *, overwrite: bool = False, but: str = "") -> None:
    """Raise InputError if something other than an empty folder is at `path` and `overwrite` is not set, or if nothing can be
    created there. An entry of the name `but` does not count.
    """
    place = followed(path)
    if place.is_dir():
        if not overwrite and not holds_nothing(place, but=but):
            raise InputError(f"output folder {path} is not empty: name a new folder, or pass --overwrite to replace it")
        if overwrite and (place / LOCK).exists():  # a run: refuse to replace one that is being written
            with sole_writer(place):
                pass
        if os.path.ismount(place) or not _may_create(place.parent):
            _require_creatable(place, path, "output folder")
    elif place.exists():
        raise InputError(f"output {path} is a file: expected a folder that does not exist yet")
    else:
        _require_creatable(place.parent, path, "output folder")


def holds_nothing(folder: Path, *, but: str = "") -> bool:
    """Whether a folder holds nothing but a lock, what killed processes left, and an entry of the name `but`."""
    return all(entry.name in (LOCK, but) or _is_leftover(entry) for entry in folder.iterdir())


def _take_place(temporary: Path, path: Path) -> None:
    """Put a folder in the place of another, in one step if the system can."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        try:
            os.replace(temporary, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise InputError(f"output folder {path} was filled by another process meanwhile: name a new folder") from None
    elif not _exchange(temporary, path):
        retired = _temporary(path, "old")
        os.replace(path, retired)
        try:
            os.replace(temporary, path)
        except BaseException:
            os.replace(retired, path)
            raise
        shutil.rmtree(retired, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two entries of a file system in one step; False if this system or file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or a C library without it
        return False
    return rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def _move_into(temporary: Path, path: Path) -> None:
    for old in list(path.iterdir()):
        if old.name not in (temporary.name, LOCK):
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    for entry in sorted(temporary.iterdir(), key=lambda entry: entry.suffix == ".json"):
        os.replace(entry, path / entry.name)
    sync_folder(path)


# --- one writer -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sole_writer(folder: Path | str) -> Iterator[None]:
    """Be the only process that works on a run folder, which is made if there is none; a kill releases it.

    The lock is `flock` on the file `.lock` in the folder. It holds between machines on file systems that pass it on, as NFS 4
    does; where there is no `flock`, it is what the library `filelock` has in its place.

    Raises:
        InputError: if another process works there, or the folder cannot be made or written.
    """
    folder = followed(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {folder} is a file: expected a folder that does not exist yet")
    _require_creatable(folder, folder, "output folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        remedy = "wait until it ends, or stop it, or name another folder"
        raise InputError(f"another process is writing {folder}: {remedy}") from None
    try:
        yield
    finally:
        lock.release()


# --- what a kill leaves behind ----------------------------------------------------------------------------------------------


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders, at any depth, whose writer was killed."""
    for entry in list(folder.rglob(".*")):
        _remove_if_leftover(entry)


def _remove_if_leftover(entry: Path) -> None:
    if _is_leftover(entry):
        shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def _is_leftover(entry: Path) -> bool:
    """Whether a temporary name is of an earlier version, or of a process of this machine that is gone; one of another machine
    counts when it is a day old."""
    found = _LEFTOVER.fullmatch(entry.name)
    if found is None:
        return False
    if found["process"] is None:
        return True
    if found["host"] == _HOST:
        return not _runs(int(found["process"]))
    with contextlib.suppress(OSError):
        return time.time() - entry.lstat().st_mtime > _DAY
    return False


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _temporary(path: Path, suffix: str = "tmp") -> Path:
    """A hidden name beside `path` that says which process of which machine uses it."""
    return path.with_name(f".{path.name[:_LONGEST]}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}.{suffix}")


# --- the file system --------------------------------------------------------------------------------------------------------


def followed(path: Path | str) -> Path:
    """The path, or what it is a symbolic link to.

    Raises:
        InputError: for a circle of links, and for what is no path.
    """
    path = Path(path)
    try:
        if "\0" in str(path):
            raise ValueError("it holds a null character")
        return path.resolve(strict=False) if path.is_symlink() else path
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"output {str(path)!r} is no usable path ({error}): choose another") from None


def _sync_tree(folder: Path) -> None:
    """Have everything in a folder on the disk. Several at a time: file systems then write many files at once."""
    entries = list(folder.rglob("*"))
    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        list(pool.map(_sync_file, [entry for entry in entries if entry.is_file()]))
    for entry in entries:
        if entry.is_dir():
            sync_folder(entry)


def _sync_file(path: Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Ask the system to write a folder's entries to the disk, as far as it can be asked."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_no_space(error: OSError) -> bool:
    """Whether an operating-system error means that a disk, a quota or a file-size limit is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _is_special(path: Path) -> bool:
    """Whether there is something other than a file or a folder, such as a device or a pipe."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _may_create(folder: Path) -> bool:
    """Whether a file can be created in a folder that exists."""
    probe = _temporary(folder / "probe")
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        probe.unlink()
    except OSError as error:
        if is_no_space(error):
            raise OSError(error.errno, error.strerror, str(folder)) from None
        return False
    return True


def _require_creatable(folder: Path, path: Path | str, option: str) -> None:
    """Raise InputError if nothing can be created in a folder, or in the nearest one above it that exists."""
    above = folder.absolute()
    try:
        while not above.exists():
            above = above.parent
        if not above.is_dir():
            raise InputError(f"{option} is {str(path)!r}, and {above} is no folder: choose another place")
        if not _may_create(above):
            raise InputError(f"{option} is {str(path)!r}, and nothing can be created in {above}: choose another place")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError) or (isinstance(error, OSError) and is_no_space(error)):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{option} {str(path)[:100]!r} is no usable path ({reason}): choose another") from None
