"""Guesses and their evaluation: runs, cross-validation, scores, baselines, ensembles, submissions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kitlib.core import lazy

if TYPE_CHECKING:
    from kitlib.evaluation import comparison as comparison
    from kitlib.evaluation import crossval as crossval
    from kitlib.evaluation import decisions as decisions
    from kitlib.evaluation import ensemble as ensemble
    from kitlib.evaluation import fold_files as fold_files
    from kitlib.evaluation import ledger as ledger
    from kitlib.evaluation import prior as prior
    from kitlib.evaluation import runs as runs
    from kitlib.evaluation import submission as submission
    from kitlib.evaluation.baselines import beside as beside
    from kitlib.evaluation.baselines import chance as chance
    from kitlib.evaluation.baselines import commonest_out_of_fold as commonest_out_of_fold
    from kitlib.evaluation.baselines import state_points as state_points
    from kitlib.evaluation.guesses import Guesses as Guesses
    from kitlib.evaluation.guesses import average as average
    from kitlib.evaluation.metrics import error_table as error_table
    from kitlib.evaluation.metrics import report as accuracy
    from kitlib.evaluation.metrics import score_arrays as score_arrays
    from kitlib.evaluation.metrics import score_guesses as score_guesses
    from kitlib.evaluation.metrics import score_members as score_members
    from kitlib.evaluation.runs import best_on as best_on
    from kitlib.evaluation.runs import finished_on as finished_on
    from kitlib.evaluation.runs import open_run as open_run
    from kitlib.evaluation.submission import score_files as score_files
else:
    __getattr__, __dir__ = lazy.face(__name__, __file__)
