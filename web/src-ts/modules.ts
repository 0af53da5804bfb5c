// The engine's two WebAssembly modules: a small one that only reads, which is loaded first, and the one with everything.
// As wasm-bindgen's own glue does, this keeps them once for a thread.

import { asOxcowError, OxcowError } from './errors.js';
import * as reader from './wasm/oxcow_reader.js';
import * as everything from './wasm/oxcow_web.js';

/** Where a compiled module comes from. */
export type ModuleSource = URL | string | Response | BufferSource | WebAssembly.Module;

/** A module that opens images for reading. */
export type Reader = Pick<typeof reader, 'EngineImage' | 'inspect'>;
/** The module with everything. */
export type Everything = typeof everything;

let reading: Promise<Reader> | undefined;
let whole: Promise<Everything> | undefined;
let wholeFrom: () => ModuleSource = () => {
  throw new OxcowError('internal', 'The engine is not loaded');
};

/** Loads the module with everything, also for what only reads. */
export async function loadEngine(module: ModuleSource): Promise<void> {
  wholeFrom = () => module;
  await forWriting();
}

/** Loads the module that reads. The one with everything comes `later`, when something is to be written. */
export async function loadReader(module: ModuleSource, later: () => ModuleSource): Promise<void> {
  wholeFrom = later;
  reading ??= loaded(reader, module);
  await reading;
}

/** What opens an image that is only read. */
export function forReading(): Promise<Reader> {
  return reading ?? forWriting();
}

/** What opens an image that is written to, and makes new ones. */
export function forWriting(): Promise<Everything> {
  whole ??= loaded(everything, wholeFrom());
  // What could not be fetched may be there the next time.
  whole.catch(() => (whole = undefined));
  return whole;
}

async function loaded<T extends { default(options: { module_or_path: unknown }): Promise<unknown> }>(
  glue: T,
  module: ModuleSource,
): Promise<T> {
  try {
    await glue.default({ module_or_path: module });
    return glue;
  } catch (error) {
    throw new OxcowError('internal', `The engine could not be loaded: ${asOxcowError(error).message}`, { cause: error });
  }
}
