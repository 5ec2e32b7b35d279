"""raq from Python, for notebooks and scripts: what `import raq` offers."""
