// <ox-clone>: begins a clone of an image on the web server that the page comes from.

import { css, html, LitElement, nothing, type TemplateResult } from 'lit';

import type { Session } from '../session.js';
import { base } from '../styles.js';
import { Task } from '../task.js';

export class Clone extends LitElement {
  static override properties = { session: { attribute: false }, _wrong: { state: true } };
  declare session: Session;
  declare _wrong: string;

  static override styles = [
    base,
    css`
      label {
        flex: 1 1 12rem;
        min-width: 0;
      }
      input {
        width: 100%;
        min-width: 0;
        font-family: var(--mono);
      }
    `,
  ];

  #task = new Task(this);

  constructor() {
    super();
    this._wrong = '';
  }

  override render(): TemplateResult {
    return html`<div class="stack">
      <p class="small muted" id="how">
        The clone can be used at once and fills itself in the background; it goes on whenever this page is open. The page may ask only
        the server that it comes from (<code class="name">${location.host}</code>): that is what keeps your disks in this tab.
      </p>
      <form class="fields" @submit=${this.#submit} novalidate>
        <label
          >Address of a qcow2 or raw image
          <input
            type="text"
            name="url"
            inputmode="url"
            spellcheck="false"
            autocomplete="off"
            placeholder="images/disk.qcow2"
            aria-describedby=${this._wrong ? 'how wrong' : 'how'}
            aria-invalid=${this._wrong ? 'true' : 'false'}
          />
        </label>
        <button type="submit" ?disabled=${this.#task.running}>Clone</button>
      </form>
      <p class="wrong" id="wrong" role="alert" ?hidden=${!this._wrong}>${this._wrong}</p>
      ${this.#task.running ? this.#task.progress() : nothing} ${this.#task.problem('Not cloned')}
    </div>`;
  }

  async #submit(event: SubmitEvent): Promise<void> {
    event.preventDefault();
    const text = this.renderRoot.querySelector('input')?.value.trim() ?? '';
    const url = text && URL.canParse(text, document.baseURI) ? new URL(text, document.baseURI) : undefined;
    this._wrong = !url
      ? 'That is no address.'
      : url.origin !== location.origin
        ? `This page may only ask ${location.host}. Download the image, and drop it here.`
        : '';
    if (url && !this._wrong) await this.#task.run('Cloning', ({ signal }) => this.session.cloneUrl(url.href, signal));
  }
}

customElements.define('ox-clone', Clone);
