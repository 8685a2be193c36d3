"""Quality, diversity and cost of samples: generative perplexity, intervals, Pareto plots and tables, replay pages."""
