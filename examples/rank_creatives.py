"""Rank the advertising images of a product, and read why the first is preferred to the second.

    python examples/rank_creatives.py

The selector that ships was trained on simulated campaigns only, and these are simulated too.
"""

from moonshelf.creatives.backends.names import make_backend
from moonshelf.creatives.io.readers import read_creatives
from moonshelf.creatives.ranking import rank
from moonshelf.creatives.schema import Campaign
from moonshelf.creatives.selector import judge
from moonshelf.sample import CAMPAIGNS

# A CSV with the columns product_id, title, interest and image is read as well; so is a folder of pictures.
campaign = next(row for row in read_creatives(CAMPAIGNS) if isinstance(row, Campaign))
print(f"{campaign.title}; shoppers look for: {', '.join(campaign.interest)}")

# Pairs are compared in both orders where it matters, and the order is fitted to all comparisons.
selector = make_backend("starter")
ranking = rank(campaign, selector)
print(f"{len(ranking.comparisons)} of {ranking.pairs} pairs compared, {ranking.abstained} without a verdict")
for name in ranking.order:
    low, high = ranking.intervals[name]
    print(f"  {name}  best with {ranking.p_best[name]:.0%}, strength {low:+.1f} to {high:+.1f}")

# The best two again, with reasons. A judgement may abstain: its verdict is None then, and it says why.
place = {creative.id: i for i, creative in enumerate(campaign.creatives)}
a, b = (place[name] for name in ranking.order[:2])
judgement = judge(selector, [campaign.pair(a, b, "best two")])[0]
print(f"\n{judgement.verdict or 'no verdict: ' + judgement.abstained}, P(A) = {judgement.p:.2f}")
for finding in judgement.assessment.findings if judgement.assessment else ():
    print(
        f"  {finding.question:10}  {finding.answer:4}", finding.reason_a or "-", "|", finding.reason_b or "-"
    )
