// What creating, overlays and converting have in common.

import { OxcowError } from './errors.js';
import { openSource } from './source.js';
import type { Opened } from './storage/engine.js';
import type { Storage } from './storage/types.js';
import type { Traffic } from './types.js';
import type { EngineCreateOptions } from './wasm/oxcow_web.js';
import type { NewImageOptions } from './writing.js';

/** Opens a storage that is to be written to from its beginning. */
export async function openEmpty(
  storage: Storage,
  traffic: Traffic,
  options: { name?: string; overwrite?: boolean; signal?: AbortSignal },
): Promise<Opened> {
  const { name, signal } = options;
  const opened = await openSource(storage, traffic, { name, signal, writable: true, create: true });
  const length = opened.engine.length();
  if (length === 0 || options.overwrite) return opened;
  await opened.giveUp();
  throw new OxcowError('refused', `'${opened.engine.name}' holds ${length} bytes already, which are not to be lost`);
}

/** The options that every new image has, for the engine. */
export function newImage(options: NewImageOptions): EngineCreateOptions {
  return {
    size: undefined,
    version: options.version,
    clusterSize: options.clusterSize,
    refcountBits: options.refcountBits,
    extendedL2: options.extendedL2 ?? false,
    lazyRefcounts: options.lazyRefcounts ?? false,
    compressionType: options.compressionType,
    preallocation: options.preallocation,
    backing: undefined,
    backingName: undefined,
    backingFormat: undefined,
    dataFile: undefined,
    dataFileRaw: false,
  };
}
