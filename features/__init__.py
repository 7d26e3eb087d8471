"""Features: one declaration each, replayed over a log (`Replay`) or kept live (`LiveState`).

Public names live in their modules: `declaration` (what a feature is), `catalogue.DEFAULT_FEATURES`,
`builder.Features` (schema and matrix), `schema.FeatureSchema`, `replay.Replay`, `live.LiveState`,
`reading.Reading`.
"""
