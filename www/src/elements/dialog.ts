// <ox-dialog>: asks before something is done, and says what will be lost and what is safe. A native dialog.

import { css, html, LitElement, nothing, type TemplateResult } from 'lit';

import { icons } from '../icons.js';
import { base } from '../styles.js';

export interface Question {
  title: string;
  /** What is lost; left out where nothing is. */
  lost?: string;
  /** What stays as it is. */
  safe: string;
  /** More to say, or to choose. */
  more?: TemplateResult;
  /** The button that does it. */
  action: string;
}

export class Dialog extends LitElement {
  static override properties = { question: { attribute: false } };
  declare question: Question;
  answer: (values: FormData | undefined) => void = () => {};

  static override styles = [
    base,
    css`
      dialog {
        width: min(32rem, calc(100vw - 2rem));
        max-height: calc(100vh - 2rem);
        overflow: auto;
        padding: 1.25rem 1.5rem 1.5rem;
        border: 1px solid var(--line);
        border-radius: 14px;
        background: var(--surface);
        color: var(--text);
        box-shadow: 0 20px 60px rgb(0 0 0 / 30%);
      }
      dialog::backdrop {
        background: rgb(0 0 0 / 45%);
      }
      form {
        display: grid;
        gap: 0.875rem;
      }
      h2 {
        font-size: 1.1875rem;
        overflow-wrap: anywhere;
      }
      .note span {
        overflow-wrap: anywhere;
      }
      .actions {
        justify-content: flex-end;
        margin-top: 0.25rem;
      }
      button.danger {
        background: var(--danger);
        border-color: var(--danger);
        color: var(--surface);
      }
      button.danger:hover:not(:disabled) {
        background: var(--danger);
        filter: brightness(1.08);
      }
      .field {
        display: grid;
        gap: 0.25rem;
        font-size: 0.875rem;
      }
      .messages {
        max-height: 10rem;
        overflow: auto;
        padding: 0.5rem 0.75rem;
        background: var(--sunken);
        border-radius: 8px;
        font: 0.8125rem/1.5 var(--mono);
      }
      @media (forced-colors: active) {
        button.danger {
          background: ButtonFace;
          color: ButtonText;
          border: 2px solid ButtonText;
        }
      }
    `,
  ];

  override firstUpdated(): void {
    this.renderRoot.querySelector('dialog')?.showModal();
  }

  override render(): TemplateResult {
    const { title, lost, safe, more, action } = this.question;
    return html`<dialog aria-labelledby="title" @close=${() => this.#end(undefined)}>
      <form @submit=${this.#submit}>
        <h2 id="title">${title}</h2>
        ${lost === undefined ? nothing : html`<p class="note danger">${icons.danger}<span><strong>Lost:</strong> ${lost}</span></p>`}
        <p class="note ok">${icons.ok}<span><strong>Safe:</strong> ${safe}</span></p>
        ${more ?? nothing}
        <div class="row actions">
          <button type="button" @click=${() => this.#end(undefined)}>Cancel</button>
          <button type="submit" class=${lost === undefined ? 'primary' : 'danger'}>${action}</button>
        </div>
      </form>
    </dialog>`;
  }

  #submit(event: SubmitEvent): void {
    event.preventDefault();
    this.#end(new FormData(event.target as HTMLFormElement));
  }

  #end(values: FormData | undefined): void {
    this.answer(values);
    this.renderRoot.querySelector('dialog')?.close(); // Gives the focus back to where it was.
    this.remove();
  }
}

customElements.define('ox-dialog', Dialog);

/** Asks; gives what was filled in, or `undefined` where the answer is no. */
export function ask(question: Question): Promise<FormData | undefined> {
  return new Promise((resolve) => {
    const dialog = document.createElement('ox-dialog') as Dialog;
    dialog.question = question;
    dialog.answer = resolve;
    document.body.append(dialog);
  });
}
