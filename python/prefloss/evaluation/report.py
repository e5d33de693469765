"""An evaluation as a page for people who know no statistics: self-contained HTML, pictures in it, no scripts."""

from __future__ import annotations

import io
import math
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure

from .. import __version__
from .estimate import Estimate
from .evaluation import Evaluation
from .figure import panels
from .text import LOG_2, concerns, named_estimates

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2937; background: #fff; margin: 0 auto; max-width: 62rem;
  padding: 1rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p.small, figcaption { color: #4b5563; font-size: .9rem; }
p.files { overflow-wrap: anywhere; }
.answer { font-size: 1.1rem; border-left: 4px solid #1d4ed8; padding: .1rem 0 .1rem 1rem; }
.worry { background: #fff7ed; border-left: 4px solid #c2410c; padding: .6rem 1rem; margin: .6rem 0; }
.fine { background: #f0f9ff; border-left: 4px solid #1d4ed8; padding: .6rem 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { text-align: right; padding: .4rem .6rem; border-bottom: 1px solid #e5e7eb; }
td { white-space: nowrap; }
th { font-weight: 600; border-bottom: 2px solid #9ca3af; vertical-align: bottom; }
td:first-child, th:first-child { text-align: left; white-space: normal; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; }
dt { font-weight: 600; margin-top: .7rem; }
dd { margin: 0; }
@media (max-width: 30rem) {
  body { padding: .5rem .8rem 3rem; }
  td, th { padding: .35rem .2rem; font-size: .8rem; }
}
"""
CAPTIONS = {
    "losses": "Each line is an interval for the expected loss: the true value lies in it for {level} of all collections like "
    "this one. The "
    "further left the better; the dashed line is a model that knows nothing.",
    "calibration": "Where the points lie on the dashed line, the model's probabilities can be taken at their word. Below it, "
    "the model is too "
    "sure of itself.",
    "margins": "How far apart the two rewards of a pair lie. To the right of 0 the model agrees with the preference.",
    "weights": "If the curve shoots up at the left, a few pairs decide everything.",
}
WORDS = {
    "loss": "How surprised the model is by people's preferences, on average. Lower is better; 0.693 is a model that knows "
    "nothing.",
    "accuracy": "How often the model prefers the response that people prefer.",
    "interval": "Where the value lies for new pairs of the same kind, with the stated certainty. It knows nothing of pairs of "
    "another kind.",
    "effective pairs": "As many independent pairs of equal weight would tell as much. Far fewer than the pairs means that "
    "pairs resemble each "
    "other (clusters) or that weights are unequal.",
    "calibration slope": "1: the model's probabilities are right. Less: it is too sure. More: it could be surer.",
    "ties": "How often both rewards are equal, so that the model has no preference.",
    "margin": "The chosen response's reward minus the other's, on average, in the model's own unit.",
    "Brier score": "The mean squared error of the model's probabilities: 0 is perfect, 0.25 knows nothing.",
}


def page(evaluation: Evaluation, level: float, files: list[str], notes: list[str]) -> str:
    """The whole page. `notes` are concerns that the evaluation itself does not know of."""
    body = [
        "<h1>What these preference pairs say about the model</h1>",
        f'<p class="small files">{evaluation.pairs:,} pairs from {escape(", ".join(files))}; prefloss {__version__}</p>',
        *(f'<p class="answer">{escape(sentence)}</p>' for sentence in answers(evaluation, level)),
        "<h2>What to worry about</h2>",
        *_worries(notes + concerns(evaluation)),
        f'<p class="small">{escape(CANNOT_KNOW)}</p>',
        "<h2>The numbers</h2>",
        _numbers(evaluation, level),
        _groups(evaluation, level),
        "<h2>Pictures</h2>",
        '<div class="pictures">',
        *(_picture(name, evaluation, level) for name in panels(evaluation)),
        "</div>",
        "<h2>What was assumed</h2>",
        "<ul>",
        *(f"<li>{escape(sentence)}</li>" for sentence in assumptions(evaluation)),
        "</ul>",
        "<h2>What the words mean</h2>",
        "<dl>",
        *(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in WORDS.items()),
        "</dl>",
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Preference pairs: what they say</title><style>{STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


CANNOT_KNOW = (
    "What no number here can tell: whether the model was trained on these pairs (then everything looks better than it is), "
    "and whether new pairs come from the same people, prompts and models as these."
)


def _worries(said: list[str]) -> list[str]:
    if not said:
        return ['<p class="fine">Nothing was found in the numbers.</p>']
    return [f'<p class="worry">{escape(worry)}</p>' for worry in said]


def answers(evaluation: Evaluation, level: float) -> list[str]:
    """The loss and the accuracy in whole sentences."""
    loss, accuracy = evaluation.loss, evaluation.accuracy
    if not math.isfinite(loss.standard_error):
        return ["From these pairs nobody can say how good the model is: see below why."]
    low, high = accuracy.interval(level)
    loss_low, loss_high = loss.interval(level)
    if loss_high < LOG_2:
        verdict = "That is better than knowing nothing (0.693), beyond what chance explains."
    elif loss_low > LOG_2:
        verdict = "That is worse than knowing nothing (0.693): rewards that are all equal would do better."
    else:
        verdict = "Whether that is better than knowing nothing (0.693), these pairs cannot say."
    said = [
        f"The model agrees with the preference in {accuracy.value:.1%} of pairs; for new pairs like these, between {low:.1%} "
        f"and {high:.1%}.",
        f"Its loss is {loss.value:.3f}, between {loss_low:.3f} and {loss_high:.3f}. {verdict}",
    ]
    if evaluation.options.baseline:
        difference = evaluation.difference
        low, high = difference.interval(level)
        better = "better than" if high < 0 else "worse than" if low > 0 else "not told apart from"
        said.append(
            f"It is {better} the baseline: its loss is {difference.value:+.4f} against it ({low:+.4f} to {high:+.4f})."
        )
    return said


def assumptions(evaluation: Evaluation) -> list[str]:
    if evaluation.options.clustered:
        drawn = (
            f"The {evaluation.clusters:,} clusters were drawn independently of each other. Pairs within one may resemble each "
            f"other as they like."
        )
    else:
        drawn = (
            "Each pair was drawn independently of all others. If several pairs share a prompt, an annotator or a "
            "conversation, this is not so, and "
            "the intervals are too narrow: name that column with --cluster."
        )
    said = [
        drawn,
        "New pairs come from the same population as these, with the same kinds of prompts, responses and people.",
    ]
    if evaluation.options.weighted:
        said.append(
            "The weights are right: they say how often a pair like this occurs in the population, relative to how often it was "
            "collected."
        )
    if evaluation.is_reweighted:
        shares = ", ".join(f"{label} {share:.1%}" for label, share in evaluation.shares.items())
        said.append(
            f"The groups have these shares of the population: {shares}. Within a group, the pairs were drawn without favour."
        )
    if evaluation.options.judge:
        said.append("The pairs that people labelled were chosen at random among all.")
    if evaluation.options.beta != 1.0:
        said.append(f"Rewards are multiplied by beta = {evaluation.options.beta:g}.")
    return said


def _row(name: str, estimate: Estimate, level: float, last: str) -> str:
    low, high = estimate.interval(level)
    cells = f"<td>{estimate.value:.4f}</td><td>{low:.4f} … {high:.4f}</td><td>{last}</td>"
    return f"<tr><td>{escape(name)}</td>{cells}</tr>"


def _table(heads: list[str], rows: list[str]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _numbers(evaluation: Evaluation, level: float) -> str:
    rows = []
    for name, estimate in named_estimates(evaluation).items():
        effective = estimate.effective_sample_size
        rows.append(_row(name, estimate, level, "–" if math.isnan(effective) else f"{effective:,.0f}"))
    calibration = evaluation.calibration
    low, high = calibration.interval(level)
    rows.append(
        f"<tr><td>calibration slope</td><td>{calibration.slope:.4f}</td><td>{low:.4f} … {high:.4f}</td><td>–</td></tr>"
    )
    return _table(["", "estimate", f"{100 * level:g} % interval", "effective pairs"], rows)


def _groups(evaluation: Evaluation, level: float) -> str:
    if not evaluation.options.grouped or not evaluation.groups:
        return ""
    groups = sorted(evaluation.groups.items(), key=lambda item: -item[1].loss.value)
    table = _table(
        ["group, worst first", "loss", f"{100 * level:g} % interval", "pairs"],
        [_row(str(label), group.loss, level, f"{group.pairs:,}") for label, group in groups],
    )
    worst = evaluation.worst_group(level)
    low, high = worst.interval
    note = (
        f"The greatest loss of a group lies between {low:.4f} and {high:.4f}: that interval allows for the worst group having "
        f"been "
        "picked out, which each group's own does not."
    )
    return f'<h2>The loss of each group</h2>{table}<p class="small">{note}</p>'


def _picture(name: str, evaluation: Evaluation, level: float) -> str:
    caption = CAPTIONS[name].format(level=f"{100 * level:g} %")
    rows = 1 + (min(len(evaluation.groups), 30) if name == "losses" and evaluation.options.grouped else 0)
    with matplotlib.rc_context({"svg.hashsalt": "prefloss"}):
        figure = Figure(figsize=(5.2, max(3.6, 1.4 + 0.24 * rows)), layout="constrained")
        panels(evaluation)[name](figure.subplots(), evaluation, level)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Title": name})
    svg = drawn.getvalue()
    # Names inside one picture are kept apart from those of the next.
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg[svg.index("<svg") :])
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
