// Writing a disk or a file to the user's computer as it is read, never holding more than a few chunks of it.

import { OxcowError, type DiskImage } from 'oxcow';

import type { Watch } from './task.js';

/** What is saved: so many bytes, read as they are asked for. */
interface Content {
  size: number;
  stream(watch: Watch): ReadableStream<Uint8Array>;
  /** As the bytes of a file that can be sought in, where that spares something. */
  writeTo?(file: FileSystemWritableFileStream, watch: Watch): Promise<void>;
}

interface SavePicker {
  showSaveFilePicker?(options: { suggestedName: string }): Promise<FileSystemFileHandle>;
}

/** Bytes in flight between the engine and the disk are a few of these. */
const CHUNK = 2 << 20;

/** Zeros at least this long are skipped, not written, where the file can be sought in. */
const SPARSE_CHUNK = 1 << 20;

/** Saves the disk as raw bytes. `false`: the user chose no file. */
export function saveRaw(image: DiskImage, name: string, watch: Watch): Promise<boolean> {
  return save(name, watch, async () => ({
    size: Number(image.virtualSize),
    stream: ({ signal }) => image.stream({ signal, chunkSize: CHUNK }),
    writeTo: (file, watch) => writeRaw(file, image, watch),
  }));
}

/** Saves a file of the page's own, once it is ready. `false`: the user chose no file. */
export function saveFile(name: string, watch: Watch, ready: () => Promise<File>): Promise<boolean> {
  return save(name, watch, async () => {
    const file = await ready();
    return { size: file.size, stream: () => file.stream() };
  });
}

/**
 * To a file that the user chooses where the browser has a picker, through the service worker as an ordinary download
 * elsewhere. A picker is only shown right after a click, so it comes before everything else.
 */
async function save(name: string, watch: Watch, ready: () => Promise<Content>): Promise<boolean> {
  const { showSaveFilePicker } = window as SavePicker;
  let handle: FileSystemFileHandle | undefined;
  try {
    handle = await showSaveFilePicker?.call(window, { suggestedName: name });
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') return false;
  }
  const content = await ready();
  if (!handle) return download(content, name, watch);
  const file = await handle.createWritable();
  try {
    if (content.writeTo) await content.writeTo(file, watch);
    else await writeAll(file, content, watch);
    await file.close();
  } catch (error) {
    await file.abort().catch(() => {});
    throw watch.signal.aborted ? new OxcowError('cancelled', 'Operation cancelled') : error;
  }
  return true;
}

async function writeAll(file: FileSystemWritableFileStream, content: Content, watch: Watch): Promise<void> {
  let done = 0;
  const reader = content.stream(watch).getReader();
  try {
    for (;;) {
      watch.signal.throwIfAborted();
      const { value } = await reader.read();
      if (!value) return;
      await file.write(value as Uint8Array<ArrayBuffer>);
      done += value.byteLength;
      watch.onProgress(done, content.size);
    }
  } finally {
    void reader.cancel().catch(() => {});
  }
}

/** Writes what is stored, and leaves out long runs of zeros: the file's length says the rest. */
async function writeRaw(file: FileSystemWritableFileStream, image: DiskImage, watch: Watch): Promise<void> {
  const total = Number(image.virtualSize);
  await file.truncate(total);
  let done = 0;
  const write = async (start: number, length: number) => {
    for await (const chunk of image.stream({ start, length, signal: watch.signal, chunkSize: CHUNK })) {
      await file.write({ type: 'write', position: done, data: chunk as Uint8Array<ArrayBuffer> });
      done += chunk.byteLength;
      watch.onProgress(done, total);
    }
  };
  // Runs of stored bytes, joined over short gaps.
  let from: number | undefined;
  for await (const extent of image.extents({ signal: watch.signal })) {
    const [start, length] = [Number(extent.start), Number(extent.length)];
    if (extent.data || length < SPARSE_CHUNK) {
      from ??= start;
      continue;
    }
    if (from !== undefined) await write(from, start - from);
    from = undefined;
    done = start + length;
    watch.onProgress(done, total);
  }
  if (from !== undefined) await write(from, total - from);
}

/** Has the service worker answer a request of the browser's with the content, which saves it as it comes. */
async function download(content: Content, name: string, watch: Watch): Promise<boolean> {
  const registration = await navigator.serviceWorker?.ready;
  const worker = registration?.active;
  if (!worker) {
    throw new OxcowError('unsupported', 'This browser can save large files only on a page with a service worker, which is not there');
  }
  const id = crypto.randomUUID();
  const total = content.size;
  const { port1: port, port2 } = new MessageChannel();
  worker.postMessage({ type: 'download', id, name, size: total }, [port2]);

  const reader = content.stream(watch).getReader();
  let done = 0;
  // A service worker without messages is put to sleep, downloads or not.
  const awake = setInterval(() => port.postMessage({ type: 'awake' }), 10_000);
  try {
    await new Promise<void>((resolve, reject) => {
      const stop = () => {
        port.postMessage({ type: 'failed' });
        reject(new OxcowError('cancelled', 'Operation cancelled'));
      };
      watch.signal.addEventListener('abort', stop);
      port.onmessage = async ({ data }: MessageEvent<{ type: 'ready' | 'pull' | 'cancel' }>) => {
        try {
          if (data.type === 'ready') return start(`./download/${id}/${encodeURIComponent(name)}`);
          if (data.type === 'cancel') throw new OxcowError('cancelled', 'The browser stopped the download');
          const { value } = await reader.read();
          if (!value) {
            port.postMessage({ type: 'end' });
            resolve();
            return;
          }
          done += value.byteLength;
          port.postMessage({ type: 'chunk', bytes: value }, [value.buffer]);
          watch.onProgress(done, total);
        } catch (error) {
          port.postMessage({ type: 'failed' });
          reject(error);
        }
      };
    });
    return true;
  } finally {
    clearInterval(awake);
    port.onmessage = null;
    void reader.cancel().catch(() => {});
  }
}

/** Begins a download; the page itself stays, for the answer is an attachment. */
function start(url: string): void {
  const link = document.createElement('a');
  link.href = url;
  link.hidden = true;
  document.body.append(link);
  link.click();
  link.remove();
}
