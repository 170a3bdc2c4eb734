# SPDX-License-Identifier: Apache-2.0
"""How far something is: a live line on a terminal, plain lines elsewhere.

In a file, a pipe or a notebook nothing is rewritten, and nothing but text is
printed.
"""

import sys
import time

LINES = 5  # that a training leaves in a file
SILENCE = 600  # seconds, after which a file gets a line in any case
REDRAW = 0.2  # seconds between two looks of the live line
READ = 1.0  # seconds between two looks at figures, which may be on a device
MEASURE = 1.0  # seconds that a speed needs to be worth telling


class Progress:
    """Of a known number of steps or images.

    Speed is that since the first update, so that neither what an earlier
    process did nor the tracing of the first step counts.

    Args:
        total: How many there are.
        unit: What is counted: `step` or `images`.
        done: How many there were done before.
        images: In each of them.
        patience: Seconds after the first update that may pass without a line
            in a file: what is over by then is not worth one.
        stream: Where to; stdout by default.
    """

    def __init__(
        self,
        total,
        *,
        unit="step",
        done=0,
        images=1,
        patience=0,
        stream=None,
    ):
        self.total = total
        self.unit = unit
        self.done = done
        self.images = images
        self.patience = patience
        self.stream = stream or sys.stdout
        self.bar = None
        self.first = None  # (done, time) of the first update
        self.figures = ""
        self.line_at, self.line_time = done, 0  # of the last line
        self.said = False  # whether there was one
        self.begun = time.monotonic()
        self.drawn_time = self.read_time = 0

    def begin(self, what):
        """Say what the first update has to wait for."""
        if self.stream.isatty():
            self._open_bar()
            self._draw(f"  {what}")
        elif not self.patience:
            print(f"  {what}", file=self.stream, flush=True)

    def update(self, done, live=None, settled=None):
        """Tell how far it is; cheap, for nearly always nothing is shown.

        Args:
            done: How many are done now.
            live: Function that makes a few words of the newest figures, for a
                line that is rewritten.
            settled: Likewise of means, for a line that stays.
        """
        now = time.monotonic()
        self.done = done
        if self.first is None:
            self.first, self.line_time = (done, now), now
        if self.bar is not None and now - self.drawn_time >= REDRAW:
            if live and now - self.read_time >= READ:
                self.figures, self.read_time = live(), now
            self.drawn_time = now
            counted = "{n_fmt}/{total_fmt} |{bar:20}|"
            rest = self._rest(now, self.figures)
            self._draw(f"  {self.unit} {counted} {rest}")
        if self._line_is_due(now):
            self.line_at, self.line_time = done, now
            # The live line goes when all is done, and leaves one of these.
            if self.bar is None or done == self.total:
                self.close()
                self._print(now, settled() if settled else "")

    def add(self, count):
        """As `update`, with how many more are done."""
        self.update(self.done + count)

    def close(self):
        """Leave the line free for others; at the end, or when it stops."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _line_is_due(self, now):
        if self.done == self.total:
            return self.said or not self.patience
        since = now - self.line_time
        before, fifths = (
            count * LINES // self.total for count in (self.line_at, self.done)
        )
        is_next = fifths > before
        return (is_next and since >= self.patience) or since >= SILENCE

    def _print(self, now, figures):
        count = f"{self.done:>{len(str(self.total))}}/{self.total}"
        line = f"  {self.unit} {count}  {self._rest(now, figures)}"
        print(line.rstrip(), file=self.stream, flush=True)
        self.said = True

    def _rest(self, now, figures):
        """Figures, speed and time left."""
        first, started = self.first
        times = []
        if self.done > first and now - started >= MEASURE:
            speed = (self.done - first) / (now - started)
            times.append(speed_text(speed * self.images))
            if self.done < self.total:
                left = (self.total - self.done) / speed
                times.append(f"{clock(left)} left")
        if self.done == self.total:
            times.append(f"{clock(now - self.begun)} in all")
        return "  ".join(part for part in (", ".join(times), figures) if part)

    def _open_bar(self):
        import tqdm

        tqdm.tqdm.monitor_interval = 0  # no thread: it is drawn often enough
        self.bar = tqdm.tqdm(
            total=self.total,
            initial=self.done,
            file=self.stream,
            leave=False,
            dynamic_ncols=True,
            bar_format=" ",
        )

    def _draw(self, text):
        self.bar.n = self.done
        self.bar.bar_format = text
        self.bar.refresh()


def clock(seconds):
    """`0:21`, `3:05:10`, `2 days 3:05`: a duration."""
    seconds = int(seconds)
    days, hours = seconds // 86400, seconds // 3600
    if days:
        plural = "s" if days > 1 else ""
        return f"{days} day{plural} {hours % 24}:{seconds // 60 % 60:02d}"
    if hours:
        return f"{hours}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{seconds // 60}:{seconds % 60:02d}"


def speed_text(images_per_second):
    """`812 images/s`, `2.3 images/s`."""
    digits = (
        0 if images_per_second >= 10 else 1 if images_per_second >= 1 else 2
    )
    return f"{images_per_second:,.{digits}f} images/s"
