"""Replays a load through the real scaler and a queueing model of the engine.

    scenario_file.read() -> Scenario, arrivals;   simulation.run() -> Record;   summary, plot

There is no clock in here: time is a number that `simulation` moves from event to event, and all
chance comes from the scenario's seed.
"""
