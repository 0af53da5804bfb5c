// The dedicated worker: owns the engine and serves the calls of remote.ts.

import { Channel, moved, type Call, type Port } from './channel.js';
import { OxcowError } from './errors.js';
import { loadEngine, LocalEngine, type LocalImage, type ModuleSource } from './local.js';
import type { MapOptions, OpenOptions, OverviewOptions, Size, Source, WantedFile, WindowOptions } from './types.js';

/** A source as it crosses to the worker: as it is, or as the number under which the other side reads it. */
export type SentSource = Source | { remote: number; name?: string; size: number; windowed: true | WindowOptions };

const engine = new LocalEngine();
const images = new Map<number, LocalImage>();
let nextImage = 1;

function imageOf(id: number): LocalImage {
  const image = images.get(id);
  if (!image) throw new OxcowError('closed', 'The image is closed');
  return image;
}

function received(source: SentSource): Source {
  if (typeof source !== 'object' || !('remote' in source)) return source;
  const { remote, size, name, windowed } = source;
  return {
    ...(name !== undefined && { name }),
    size,
    windowed,
    read: (offset, length, { signal }) =>
      channel.call('read', { remote, offset, length }, { signal }) as Promise<Uint8Array>,
  };
}

type Sent<T> = T & { image: number };

/** What changes with `useSnapshot`, told with the answer. */
const stateOf = (image: LocalImage) => ({ virtualSize: image.virtualSize, snapshot: image.snapshot });

const channel = new Channel(self as unknown as Port, {
  load: (args: { module: ModuleSource | undefined }) =>
    loadEngine(args.module ?? new URL('./wasm/oxcow_web_bg.wasm', import.meta.url)),

  async open(args: { source: SentSource; options: OpenOptions; resolve: number | undefined }, call: Call) {
    const image = await engine.open(received(args.source), {
      ...args.options,
      signal: call.signal,
      resolve: async (wanted: WantedFile) => {
        if (args.resolve === undefined) return undefined;
        const found = await channel.call('resolve', { resolve: args.resolve, wanted }, { signal: call.signal });
        return found === undefined ? undefined : received(found as SentSource);
      },
    });
    const id = nextImage++;
    images.set(id, image);
    return { image: id, state: stateOf(image) };
  },

  inspect: (args: { source: SentSource; name?: string }, call: Call) =>
    engine.inspect(received(args.source), { signal: call.signal, ...(args.name !== undefined && { name: args.name }) }),

  info: (args: Sent<object>) => imageOf(args.image).info(),
  snapshots: (args: Sent<object>) => imageOf(args.image).snapshots(),
  bitmaps: (args: Sent<object>) => imageOf(args.image).bitmaps(),
  traffic: (args: Sent<object>) => imageOf(args.image).traffic(),

  map: (args: Sent<MapOptions>, call: Call) =>
    imageOf(args.image).map({ ...args, signal: call.signal, onProgress: call.progress }),

  overview: (args: Sent<OverviewOptions>, call: Call) =>
    imageOf(args.image).overview({ ...args, signal: call.signal, onProgress: call.progress }),

  check: (args: Sent<object>, call: Call) =>
    imageOf(args.image).check({ signal: call.signal, onProgress: call.progress }),

  read: async (args: Sent<{ offset: Size; length: number }>, call: Call) =>
    moved(await imageOf(args.image).read(args.offset, args.length, { signal: call.signal })),

  async useSnapshot(args: Sent<{ snapshot: string | undefined }>) {
    const image = imageOf(args.image);
    await image.useSnapshot(args.snapshot);
    return stateOf(image);
  },

  async close(args: Sent<object>) {
    const image = images.get(args.image);
    images.delete(args.image);
    await image?.close();
  },
});
