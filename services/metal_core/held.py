"""One vtysh that stays, for questions: to start it takes longer than FRR's answer does.

vtysh reads commands from its standard input and repeats each behind its prompt, so comments that nobody else says mark
where an answer begins and ends. That works through whatever brings the agent to vtysh (`docker exec -i bgp`). A vtysh
that ends, or cannot be talked to like this, is no failure of FRR: then there is no answer, and who asked starts a
vtysh for this question alone. Changes are never made here: `vtysh -f` and its exit code say more about what went wrong.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from metal_kit.backoff import Backoff

# Below a file, so it cannot be: vtysh would add each question to the history of the user.
_NO_HISTORY = ("-H", "/dev/null/none")
# Questions to one process. vtysh remembers its lines, and nothing should grow for as long as a leaf runs.
_QUESTIONS = 500
# Bytes of an answer; 1,000 sessions have 5 MB.
_MOST = 1 << 26
# Seconds in which the output of a killed process ends; something else may still hold it.
_END = 1.0
_RETRY = Backoff(first=timedelta(seconds=1), most=timedelta(seconds=60))


@dataclass(frozen=True, slots=True)
class Answer:
    """What FRR said, and the daemons that vtysh was connected to when it had said it."""

    text: str
    daemons: frozenset[str]


class HeldVtysh:
    """`command` as a process that is started when it is needed and ended by `close`; one question at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = (*command, *_NO_HISTORY)
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._asked = self._failures = 0
        self._again_at = 0.0
        self._closed = False

    async def ask(self, question: str, limit: float) -> Answer | None:
        """The answer, or None when nobody could be asked. Raises TimeoutError after `limit` seconds, the turn included.

        Whose turn does not come within half of `limit` gets no answer then, so that who asks can still ask otherwise,
        and leaves the process to those who are before. Daemons are looked at after the answer: vtysh notices that one
        has gone when it sends something there.
        """
        end = asyncio.get_running_loop().time() + limit
        try:
            async with asyncio.timeout_at(end - limit / 2):
                await self._turn.acquire()
        except TimeoutError:
            return None
        try:
            answered = False
            try:
                async with asyncio.timeout_at(end):
                    answer = await self._ask(question)
                answered = answer is not None
            finally:
                # Where a question was given up, its answer would be taken for that to the next one.
                if not answered or self._asked >= _QUESTIONS:
                    await self._end()
            return answer
        finally:
            self._turn.release()

    async def close(self) -> None:
        """End the process at once, also while it is asked; whoever asks then or later gets no answer."""
        self._closed = True
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        async with self._turn:
            await self._end()

    async def _ask(self, question: str) -> Answer | None:
        now = asyncio.get_running_loop().time()
        if self._closed or (self._process is None and now < self._again_at):
            return None
        try:
            process = await self._running()
            if self._closed:
                # It was being started when it was to be ended.
                return None
            self._asked += 1
            said = await _said(process, question)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            self._again_at = now + _RETRY.delay(self._failures).total_seconds()
            self._failures += 1
            return None
        self._failures = 0
        return said

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            await self._end()
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=_MOST,
            )
        return self._process

    async def _end(self) -> None:
        process, self._process, self._asked = self._process, None, 0
        if process is None:
            return
        assert process.stdin is not None
        # What a wrapper has started in its turn ends with its input.
        process.stdin.close()
        if process.returncode is None:
            process.kill()
        with suppress(TimeoutError):
            async with asyncio.timeout(_END):
                # Also what it still had to say is read, or the pipe would stay open.
                await process.communicate()


async def _said(process: asyncio.subprocess.Process, question: str) -> Answer:
    """Raises IncompleteReadError when vtysh ends, ValueError for what is not the expected form."""
    assert process.stdin is not None
    assert process.stdout is not None
    marks = [f"!{secrets.token_hex(8)}" for _ in range(3)]
    lines = (marks[0], question, marks[1], "show daemons", marks[2])
    process.stdin.write("".join(f"{line}\n" for line in lines).encode())
    await process.stdin.drain()
    output = (await process.stdout.readuntil(f"{marks[2]}\n".encode())).decode(errors="replace")
    answer, _, daemons = output.partition(marks[2])[0].partition(f"{marks[0]}\n")[2].partition(f"{marks[1]}\n")
    there = frozenset(_between(daemons, "show daemons").split())
    if not there:
        raise ValueError("vtysh repeats what it is told and says nothing")
    return Answer(_between(answer, question), there)


def _between(text: str, question: str) -> str:
    """`text` without its first line, which repeats the question, and its last, the prompt. Raises ValueError."""
    first, _, rest = text.partition("\n")
    if not first.endswith(question):
        raise ValueError("vtysh does not repeat the question")
    answer, newline, _ = rest.rpartition("\n")
    return answer + newline
