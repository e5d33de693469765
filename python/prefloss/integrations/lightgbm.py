"""The loss over all pairs as an objective of LightGBM.

>>> import lightgbm, numpy as np
>>> from prefloss.integrations.lightgbm import PairwiseObjective
>>> random = np.random.default_rng(0)
>>> features = random.normal(size=(200, 3))
>>> relevance = np.digitize(features[:, 0] + 0.1 * random.normal(size=200), [-0.5, 0.5])
>>> data = lightgbm.Dataset(features, relevance, group=[20] * 10)
>>> parameters = {"objective": PairwiseObjective(), "num_leaves": 4, "verbose": -1}
>>> model = lightgbm.train(parameters, data, num_boost_round=20)
>>> scores = model.predict(features)
>>> bool(scores[relevance == 2].min() > scores[relevance == 0].max())
True
"""

from .boosting import PairwiseObjective

__all__ = ["PairwiseObjective"]
