"""The loss over all pairs as an objective of XGBoost.

>>> import numpy as np, xgboost
>>> from prefloss.integrations.xgboost import PairwiseObjective
>>> random = np.random.default_rng(0)
>>> features = random.normal(size=(200, 3))
>>> relevance = np.digitize(features[:, 0] + 0.1 * random.normal(size=200), [-0.5, 0.5])
>>> data = xgboost.DMatrix(features, relevance, group=[20] * 10)
>>> model = xgboost.train({"max_depth": 2}, data, num_boost_round=5, obj=PairwiseObjective())
>>> scores = model.predict(data)
>>> bool(scores[relevance == 2].min() > scores[relevance == 0].max())
True
"""

from .boosting import PairwiseObjective

__all__ = ["PairwiseObjective"]
