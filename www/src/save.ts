// Writing a disk to the user's computer as it is read, never holding more than a few chunks of it.

import { OxcowError, type DiskImage } from 'oxcow';

/** What follows and stops a download. */
export interface Saving {
  signal: AbortSignal;
  onProgress(done: number, total: number): void;
}

interface SavePicker {
  showSaveFilePicker?(options: { suggestedName: string }): Promise<FileSystemFileHandle>;
}

/** Bytes in flight between the engine and the disk are a few of these. */
const CHUNK = 2 << 20;

/** Zeros at least this long are skipped, not written, where the file can be sought in. */
const SPARSE_CHUNK = 1 << 20;

/**
 * Saves the disk as raw bytes: to a file that the user chooses where the browser has a picker, through the
 * service worker as an ordinary download elsewhere. `false`: the user chose no file.
 */
export async function saveRaw(image: DiskImage, name: string, saving: Saving): Promise<boolean> {
  const { showSaveFilePicker } = window as SavePicker;
  if (showSaveFilePicker) {
    let handle: FileSystemFileHandle;
    try {
      handle = await showSaveFilePicker.call(window, { suggestedName: name });
    } catch (error) {
      if (error instanceof DOMException && error.name === 'AbortError') return false;
      return download(image, name, saving);
    }
    await writeTo(handle, image, saving);
    return true;
  }
  return download(image, name, saving);
}

/** Writes what is stored, and leaves out long runs of zeros: the file's length says the rest. */
async function writeTo(handle: FileSystemFileHandle, image: DiskImage, saving: Saving): Promise<void> {
  const file = await handle.createWritable();
  try {
    const total = Number(image.virtualSize);
    await file.truncate(total);
    let done = 0;
    const write = async (start: number, length: number) => {
      for await (const chunk of image.stream({ start, length, signal: saving.signal, chunkSize: CHUNK })) {
        await file.write({ type: 'write', position: done, data: chunk as Uint8Array<ArrayBuffer> });
        done += chunk.byteLength;
        saving.onProgress(done, total);
      }
    };
    // Runs of stored bytes, joined over short gaps.
    let from: number | undefined;
    for await (const extent of image.extents({ signal: saving.signal })) {
      const [start, length] = [Number(extent.start), Number(extent.length)];
      if (extent.data || length < SPARSE_CHUNK) {
        from ??= start;
        continue;
      }
      if (from !== undefined) await write(from, start - from);
      from = undefined;
      done = start + length;
      saving.onProgress(done, total);
    }
    if (from !== undefined) await write(from, total - from);
    await file.close();
  } catch (error) {
    await file.abort().catch(() => {});
    throw error;
  }
}

/** Has the service worker answer a request of the browser's with the disk, which saves it as it comes. */
async function download(image: DiskImage, name: string, saving: Saving): Promise<boolean> {
  const registration = await navigator.serviceWorker?.ready;
  const worker = registration?.active;
  if (!worker) {
    throw new OxcowError('unsupported', 'This browser can save large files only on a page with a service worker, which is not there');
  }
  const id = crypto.randomUUID();
  const total = Number(image.virtualSize);
  const { port1: port, port2 } = new MessageChannel();
  worker.postMessage({ type: 'download', id, name, size: total }, [port2]);

  const reader = image.stream({ signal: saving.signal, chunkSize: CHUNK }).getReader();
  let done = 0;
  // A service worker without messages is put to sleep, downloads or not.
  const awake = setInterval(() => port.postMessage({ type: 'awake' }), 10_000);
  try {
    await new Promise<void>((resolve, reject) => {
      const stop = () => {
        port.postMessage({ type: 'failed' });
        reject(new OxcowError('cancelled', 'Operation cancelled'));
      };
      saving.signal.addEventListener('abort', stop);
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
          saving.onProgress(done, total);
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
