"""What a console is made of: the ring, readers of different pace, the recording."""

from __future__ import annotations

import asyncio
from glob import glob
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_bmc.console.attachment import Attachment, Event, News, Printed
from metal_bmc.console.recording import Recorder
from metal_bmc.console.ring import Ring
from metal_kit.errors import Unavailable

prints = st.lists(st.binary(min_size=1, max_size=60), max_size=60)


@given(prints, st.integers(1, 200))
def test_a_ring_keeps_the_last_bytes_and_knows_where_they_are(printed: list[bytes], size: int) -> None:
    ring = Ring(size)
    for data in printed:
        ring.append(data)
    everything = b"".join(printed)
    assert ring.end == len(everything)
    assert ring.end - ring.start >= min(size, len(everything))
    assert ring.end - ring.start <= size + size // 4 + 60
    assert ring.read(ring.start, 1 << 20) == everything[ring.start :]


async def take(attachment: Attachment, most: int) -> list[Printed | News]:
    """What is there, without waiting for more."""
    found: list[Printed | News] = []
    while len(found) < most and (each := attachment._next()) is not None:
        found.append(each)
    return found


@given(prints, st.lists(st.integers(0, 3), min_size=60, max_size=60), st.integers(50, 300))
def test_a_reader_gets_everything_in_order_or_is_told_how_much_it_lost(
    printed: list[bytes], takes: list[int], size: int
) -> None:
    ring = Ring(size)
    reader = Attachment(ring, caller="anna", position=0)
    everything, position = b"".join(printed), 0
    for number, data in enumerate(printed):
        ring.append(data)
        reader.tell(News(Event.GAP, ring.end, message=str(number)))
        most = takes[number] if number < len(printed) - 1 else 1000
        for each in asyncio.run(take(reader, most)):
            if isinstance(each, Printed):
                assert everything[position : position + len(each.data)] == each.data
                position += len(each.data)
                assert position == each.position
            elif each.event is Event.SKIPPED:
                position += each.skipped
                assert position == each.position
            else:
                assert each.position <= position
    assert position == len(everything)


async def test_news_comes_after_what_was_printed_before_it() -> None:
    ring = Ring(1000)
    reader = Attachment(ring, caller="anna", position=0)
    ring.append(b"before")
    reader.tell(News(Event.LOST, ring.end))
    ring.append(b"after")
    reader.end(Unavailable("GONE", "gone"))
    following = aiter(reader)
    heard = [await anext(following) for _ in range(3)]
    with pytest.raises(Unavailable):
        await anext(following)
    assert heard == [Printed(b"before", 6), News(Event.LOST, 6), Printed(b"after", 11)]


async def test_a_reader_that_takes_nothing_costs_a_bounded_number_of_news() -> None:
    reader = Attachment(Ring(10), caller="anna", position=0)
    for number in range(1000):
        reader.tell(News(Event.GAP, 0, message=str(number)))
    assert [each.message for each in await take(reader, 2000) if isinstance(each, News)] == [
        str(number) for number in range(936, 1000)
    ]


async def test_a_recording_is_turned_over_and_bounded(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, most_bytes=1000, files=3)
    for number in range(60):
        recorder.record("m", b"%04d" % number * 25)
        await recorder.close()
    files = sorted(Path(each) for each in glob(f"{tmp_path}/*"))
    assert [file.name for file in files] == ["m.log", "m.log.1", "m.log.2"]
    assert all(file.stat().st_size <= 1000 for file in files)
    kept = b"".join(file.read_bytes() for file in reversed(files))
    assert kept == b"".join(b"%04d" % number * 25 for number in range(30, 60))


async def test_one_file_alone_is_begun_anew(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, most_bytes=1000, files=1)
    for text in (b"a" * 900, b"b" * 900, b"c" * 2500):
        recorder.record("m", text)
        await recorder.close()
    assert (tmp_path / "m.log").read_bytes() == b"c" * 500
    assert len(glob(f"{tmp_path}/*")) == 1


async def test_what_a_slow_disk_cannot_take_is_left_out_and_said_so(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, most_bytes=10 << 20, files=1)
    recorder.record("m", b"a" * (1 << 20))
    recorder.record("m", b"b" * 5)
    await recorder.close()
    recorder.record("m", b"c")
    await recorder.close()
    assert (tmp_path / "m.log").read_bytes() == b"a" * (1 << 20) + b"\r\n[5 bytes were not recorded]\r\nc"


async def test_a_disk_that_takes_nothing_costs_the_recording_only(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "gone", most_bytes=1000, files=2)
    recorder.record("m", b"text")
    await recorder.close()


async def test_a_recording_does_not_follow_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"")
    (tmp_path / "m.log").symlink_to(elsewhere)
    recorder = Recorder(tmp_path, most_bytes=1000, files=2)
    recorder.record("m", b"text")
    await recorder.close()
    assert elsewhere.read_bytes() == b""
