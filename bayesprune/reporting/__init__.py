"""Figures and the report of a run."""

from bayesprune.reporting.agreement_plots import agreement_plot as agreement_plot
from bayesprune.reporting.card import write_card as write_card
from bayesprune.reporting.compare import average_over_seeds as average_over_seeds
from bayesprune.reporting.compare import collect_runs as collect_runs
from bayesprune.reporting.compare import compare_runs as compare_runs
from bayesprune.reporting.compare import percent as percent
from bayesprune.reporting.diagnostic_plots import calibration_plot as calibration_plot
from bayesprune.reporting.map_plots import feature_maps as feature_maps
from bayesprune.reporting.path_plots import path_plot as path_plot
from bayesprune.reporting.path_plots import sensitivity_plot as sensitivity_plot
from bayesprune.reporting.posterior_plots import forest_plot as forest_plot
from bayesprune.reporting.posterior_plots import rank_probability_plot as rank_probability_plot
from bayesprune.reporting.report import ReportData as ReportData
from bayesprune.reporting.report import write_report as write_report
from bayesprune.reporting.run_plots import kept_ladder as kept_ladder
from bayesprune.reporting.run_plots import pareto_plot as pareto_plot
from bayesprune.reporting.run_plots import reliability_plot as reliability_plot
from bayesprune.reporting.summary import METRICS as METRICS
from bayesprune.reporting.summary import read_summary as read_summary
from bayesprune.reporting.training_plots import elbo_plot as elbo_plot
from bayesprune.reporting.training_plots import training_plot as training_plot
