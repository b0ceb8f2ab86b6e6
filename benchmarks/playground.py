"""How soon the playground answers a keystroke, in a browser: from the key to the painted answer.

    python benchmarks/playground.py [--keys 50] [--threads 2]

Types into the template of `examples/movie-reviews` in the system's Chromium, one key after the other
with a pause between them, as a person does who looks at what comes of it, and prints the median and the
95th percentile of the milliseconds until the parts, and until the words and classes of the row are on the
screen. After the row's text a causal model reads only what changed; before it, everything. The bar is 150 ms for `smollm2` on two cores. The machine's load is printed too: other work on the
same cores shows in the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

TASK = Path(__file__).parent.parent / "examples" / "movie-reviews"
TYPED = "All in all, to me and to all who saw it with me it was quite"
BAR = 150
#: Notes when a key arrives, when the parts have changed and when the answer is painted.
WATCH = """
window.keys = [];
document.getElementById("template").addEventListener("input", (event) => keys.push({ at: event.timeStamp }), true);
const painted = (what) => requestAnimationFrame(() => { const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => { const key = keys.at(-1); if (key && !key[what]) key[what] = performance.now() - key.at; };
  port2.postMessage(0); });
new MutationObserver(() => painted("parts")).observe(document.getElementById("parts"), { childList: true });
new MutationObserver(() => painted("answer")).observe(document.documentElement, { attributes: true, attributeFilter: ["data-answered"] });
"""


def measure(
    browser: Any, model: str, place: str, keys: int, pause: float
) -> list[dict[str, float]]:
    """Milliseconds of each key typed "after" or "before" the row's text: `parts` and `answer`."""
    command = [sys.executable, "-m", "promptforge", "-q", "playground", str(TASK), "--pattern", "it-was",
               "--model", model, "--no-browser", "--json"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(json.loads(server.stdout.readline())["url"])
            start = "{{ text }}  {{ mask }}" if place == "after" else " {{ text }} {{ mask }}"
            page.locator("#template").fill(start)
            page.wait_for_selector("#see[aria-busy=false]")
            page.locator("#template").evaluate(
                "(e, n) => e.setSelectionRange(n, n)", 11 if place == "after" else 0
            )
            page.evaluate(WATCH)
            text = (TYPED * (keys // len(TYPED) + 1))[: keys + 3]
            for i, key in enumerate(text, start=1):
                page.keyboard.type(key)
                page.wait_for_function(
                    "n => keys.length === n && keys.at(-1).answer", arg=i, polling=30
                )
                time.sleep(pause)
            found: list[dict[str, float]] = page.evaluate("keys")
            page.close(run_before_unload=False)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()
    return found[3:]  # the first warm up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=["smollm2", "minilm-mlm"])
    parser.add_argument("--keys", type=int, default=50)
    parser.add_argument(
        "--pause", type=float, default=0.15, help="seconds between an answer and a key"
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        print(
            f"{os.cpu_count()} cores, {options.threads} threads, {options.keys} keys, bar {BAR} ms"
        )
        for model in options.models:
            for place in ("after", "before"):
                before = os.getloadavg()[0]
                found = measure(browser, model, place, options.keys, options.pause)
                for what in ("parts", "answer"):
                    times = [key[what] for key in found]
                    last = statistics.quantiles(times, n=20)[-1]
                    print(
                        f"{model:10} typed {place:6} the text, {what:6}  median {statistics.median(times):4.0f} ms"
                        f"  95 % {last:4.0f} ms  within the bar {sum(t <= BAR for t in times)} of {len(times)}"
                        f"  load {before:.1f} to {os.getloadavg()[0]:.1f}",
                        flush=True,
                    )
        browser.close()


if __name__ == "__main__":
    main()
