"""Pixels to PNG, and one look for all charts.

Not here: what is drawn. Each step draws its own (``levir_kr.pictures``, ``pretraining.charts``, ``evaluation.charts``).
"""
